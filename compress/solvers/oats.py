"""OATS: low rank plus sparse, found in turn (arXiv:2409.13652), then both fitted in the whole metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.linalg.conjugate_gradient import refit
from compress.linalg.weighted_svd import as_kron, take_apart
from compress.score.metric import Kron, Metric, Side
from compress.structures.base import Selects
from compress.structures.choices import MULTIPLE, Choice, Option, along_ranks
from compress.structures.low_rank.factors import spectrum
from compress.structures.low_rank.sums import FactorsAnd

from .base import Problem, Solution

_TRIED = (0.85, 0.7, 0.55, 0.4)
"""Shares of the elements left out of a sparse part, of those that :meth:`OATS.options` tries."""

_TRIED_ROUNDS, _TRIED_STEPS = 10, 10


@dataclass(frozen=True)
class OATS:
    """Alternate a truncated SVD and a thresholding, both of the weight scaled by the metric's diagonals (algorithm 2).

    Attributes:
        rounds: of both. From the second on the SVD is one step of subspace iteration from where the last one ended.
        refits: afterwards, with the mask fixed, how often the factors and the kept values are fitted in turn in the whole
            metric, which the scaling only approximates.
        steps: of conjugate gradients in a refit of the kept values.
    """

    rounds: int = 80
    refits: int = 3
    steps: int = 30

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = FactorsAnd
    requires_residual: ClassVar[type] = Selects
    score: ClassVar[str] = "activation"

    def solve(self, problem: Problem[FactorsAnd[Selects]], start: Solution | None = None) -> Solution:
        structure, weight, metric = problem.structure, problem.target, problem.metric
        mask, sparse = alternated(
            weight, metric, structure.residual, structure.rank_of(problem.shape), self.rounds
        )
        best: Solution | None = None
        for again in range(self.refits + 1):
            residual = structure.residual.under(sparse, mask, metric)
            values = structure.residual.project(sparse, residual)
            parameters = structure.with_factors(weight, metric, residual, values)
            theta = structure.project(weight, parameters)
            info = spectrum(parameters.factors.values, structure.rank_of(problem.shape))
            found = Solution(theta, parameters, info)
            if best is not None and problem.relative_error(theta) >= problem.relative_error(best.theta):
                break
            best = found
            if again < self.refits:
                sparse = refit(weight - parameters.factors.dense, mask, metric, values, steps=self.steps)
        assert best is not None
        return best

    def options(self, problem: Problem[FactorsAnd[Selects]]) -> list[Option]:
        """Every rank alone and beside sparse parts of several densities, with what each loses.

        A sparse part is found once for a moderate rank, in a few rounds and one refit, and then held for all ranks: what is
        told is never less than a solution in full loses.
        """
        structure, weight, metric, shape = problem.structure, problem.weight, problem.metric, problem.shape
        found = along_ranks(take_apart(weight, metric).values, structure, shape, Choice(0, sparsity=1.0))
        for sparsity in _densities(structure.residual):
            rank = _moderate(shape)
            sample = structure.chosen(Choice(rank, sparsity=sparsity))
            assert isinstance(sample, FactorsAnd)
            mask, sparse = alternated(weight, metric, sample.residual, rank, _TRIED_ROUNDS)
            low = sample.with_factors(weight, metric, sample.residual.under(sparse, mask, metric), sparse)
            sparse = refit(weight - low.factors.dense, mask, metric, sparse, steps=_TRIED_STEPS)
            rest = take_apart(weight - sparse, metric)
            found += along_ranks(rest.values, structure, shape, Choice(0, sparsity=sparsity))
        return found


def alternated(
    weight: Tensor, metric: Metric, residual: Selects, rank: int, rounds: int
) -> tuple[Tensor, Tensor]:
    """The mask, bool ``[out, in]``, and the sparse part, found in the diagonal of the metric."""
    kron = as_kron(metric)
    rows = _scale(kron.left, weight.shape[0])
    columns = _scale(kron.right, weight.shape[1])
    scaled = rows.unsqueeze(1) * weight * columns
    basis: Tensor | None = None
    sparse = torch.zeros_like(scaled)
    mask = torch.ones_like(scaled, dtype=torch.bool)
    for _ in range(rounds):
        basis = _leading(scaled - sparse, rank, basis)
        rest = scaled - basis @ (basis.T @ (scaled - sparse))
        mask = residual.mask_of(residual.fit(rest, Kron()))
        sparse = rest * mask
    return mask, sparse / (rows.unsqueeze(1) * columns)


def _densities(residual: Selects) -> list[float | None]:
    """Shares to leave out; a pattern of its own leaves none to choose."""
    return [*_TRIED] if hasattr(residual.pattern, "sparsity") else [None]


def _moderate(shape: tuple[int, int]) -> int:
    """A rank of about a sixth of the weight's parameters."""
    rank = shape[0] * shape[1] // (6 * (shape[0] + shape[1]))
    return max(1, rank // MULTIPLE * MULTIPLE or rank)


def _scale(side: Side, size: int) -> Tensor:
    """The root of a side's diagonal; what costs nothing costs a little, so that it can be scaled back."""
    diagonal = side.diagonal(size).clamp_min(0)
    return (diagonal + 1e-6 * diagonal.mean().clamp_min(torch.finfo(torch.float32).tiny)).sqrt()


def _leading(matrix: Tensor, rank: int, start: Tensor | None) -> Tensor:
    """An orthonormal basis ``[out, rank]`` of the leading left singular vectors of ``matrix`` ``[out, in]``."""
    if start is None:
        return torch.linalg.svd(matrix, full_matrices=False).U[:, :rank]
    return torch.linalg.qr(matrix @ (matrix.T @ start)).Q
