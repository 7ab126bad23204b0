"""LoRA: low-rank factors that begin at random (arXiv:2106.09685), to be trained by healing; the null of `eva`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from compress.structures.base import Structure
from compress.structures.low_rank.factors import Factored
from compress.structures.low_rank.sums import FactorsAnd, SumParameters

from .base import Problem, Solution, nearest_point


@dataclass(frozen=True)
class LoRA:
    """LoRA: ``A [rank, in]`` is normally distributed with the weight's root mean square, and ``B [out, rank]`` is 0."""

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = FactorsAnd
    score: ClassVar[str] = "activation"

    def solve(self, problem: Problem[FactorsAnd[Structure]], start: Solution | None = None) -> Solution:
        """See :class:`~compress.solvers.base.WeightSolver`."""
        structure, weight = problem.structure, problem.weight
        start = start or nearest_point(problem, problem.target)
        rank = structure.rank_of(problem.shape)
        generator = torch.Generator().manual_seed(problem.seed)
        rows = torch.randn(rank, weight.shape[1], generator=generator).to(weight)
        storage = structure.factors.storage
        factors = Factored(
            storage.store(weight.new_zeros(weight.shape[0], rank)),
            storage.store(rows * weight.square().mean().sqrt()),
            weight.new_zeros(rank),
        )
        residual = structure.residual_of(start.theta, start.parameters)
        parameters = SumParameters(factors, start.parameters.residual, residual)
        return Solution(structure.project(problem.target, parameters), parameters, start.info)
