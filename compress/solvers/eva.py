"""EVA: low-rank factors that begin in the directions of the inputs (arXiv:2410.07170), to be trained by healing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from compress.structures.base import Structure
from compress.structures.low_rank.factors import Factored
from compress.structures.low_rank.sums import FactorsAnd, SumParameters

from .base import Problem, Solution, nearest_point


@dataclass(frozen=True)
class EVA:
    """EVA: the rows of ``A [rank, in]`` are the leading eigenvectors of ``E[x xᵀ]``, and ``B [out, rank]`` is 0.

    The weight stays what the solver before it left. The rows are scaled to the weight's root mean square, so that a trained B
    of size 1 changes the weight by as much as it is large. EVA also shares the ranks out over the weights; here the recipe
    gives them.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    requires: ClassVar[type] = FactorsAnd
    score: ClassVar[str] = "activation"

    def solve(self, problem: Problem[FactorsAnd[Structure]], start: Solution | None = None) -> Solution:
        """See :class:`~compress.solvers.base.WeightSolver`."""
        structure, weight = problem.structure, problem.weight
        start = start or nearest_point(problem, problem.target)
        gram = problem.statistics.gram
        columns = weight.shape[1]
        rank = structure.rank_of(problem.shape)
        if gram is None or problem.statistics.tokens == 0:
            return start
        values, vectors = torch.linalg.eigh(gram.double())
        size = weight.square().mean().sqrt() * columns**0.5
        rows = vectors.flip(1)[:, :rank].T.to(weight.dtype) * size
        rows = rows * torch.where(rows.abs().amax(1) == rows.amax(1), 1.0, -1.0).unsqueeze(
            1
        )  # signs are free
        storage = structure.factors.storage
        factors = Factored(
            storage.store(weight.new_zeros(weight.shape[0], rank)),
            storage.store(rows),
            weight.new_zeros(rank),
        )
        residual = structure.residual_of(start.theta, start.parameters)
        parameters = SumParameters(factors, start.parameters.residual, residual)
        explained = float(values[-rank:].sum() / values.sum()) if float(values.sum()) > 0 else 0.0
        return Solution(
            structure.project(problem.target, parameters), parameters, {**start.info, "explained": explained}
        )
