"""OATS: low rank plus sparse by alternating projections (arXiv:2409.13652), then both fitted in the full metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.linalg.conjugate_gradient import refit
from compress.linalg.weighted_svd import as_kron, decompose
from compress.score.metric import Kron, Metric, Side
from compress.structures.base import Selects
from compress.structures.choices import MULTIPLE, Choice, Option, along_ranks
from compress.structures.low_rank.factors import spectrum
from compress.structures.low_rank.sums import FactorsAnd

from .base import Problem, Solution

_SPARSITIES = (0.85, 0.7, 0.55, 0.4)
"""Sparsities of the sparse part that :meth:`OATS.options` tries."""

_OPTION_ROUNDS, _OPTION_STEPS = 10, 10


@dataclass(frozen=True)
class OATS:
    """OATS: alternate a truncated SVD and a threshold on the weight scaled by the metric's diagonals (algorithm 2).

    Attributes:
        rounds: number of alternations. From the second on, the SVD is one step of subspace iteration from the last basis.
        refits: how often, afterwards and with the mask fixed, the factors and the kept values are fitted in turn in the full
            metric, which the scaling only approximates.
        steps: steps of conjugate gradients in a refit of the kept values.
    """

    rounds: int = 80
    refits: int = 3
    steps: int = 30

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = FactorsAnd
    requires_residual: ClassVar[type] = Selects
    score: ClassVar[str] = "activation"

    def solve(self, problem: Problem[FactorsAnd[Selects]], start: Solution | None = None) -> Solution:
        """Alternate between factors and a pruned residual of the weight fp32 ``[out, in]``; ``start`` is not read."""
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
            if best is not None and problem.relative_error(theta) >= problem.relative_error(best.theta):
                break
            best = Solution(theta, parameters, info)
            if again < self.refits:
                sparse = refit(weight - parameters.factors.dense, mask, metric, values, steps=self.steps)
        assert best is not None
        return best

    def options(self, problem: Problem[FactorsAnd[Selects]]) -> list[Option]:
        """Every rank alone and with sparse parts of several densities, and the loss of each.

        A sparse part is computed once for a moderate rank, in a few rounds and one refit, and then held for all ranks: the loss
        is never below that of a full solution.
        """
        structure, weight, metric, shape = problem.structure, problem.weight, problem.metric, problem.shape
        options = along_ranks(decompose(weight, metric).values, structure, shape, Choice(0, sparsity=1.0))
        for sparsity in _sparsities(structure.residual):
            rank = _moderate(shape)
            sample = structure.chosen(Choice(rank, sparsity=sparsity))
            assert isinstance(sample, FactorsAnd)
            mask, sparse = alternated(weight, metric, sample.residual, rank, _OPTION_ROUNDS)
            low = sample.with_factors(weight, metric, sample.residual.under(sparse, mask, metric), sparse)
            sparse = refit(weight - low.factors.dense, mask, metric, sparse, steps=_OPTION_STEPS)
            rest = decompose(weight - sparse, metric)
            options += along_ranks(rest.values, structure, shape, Choice(0, sparsity=sparsity))
        return options


def alternated(
    weight: Tensor, metric: Metric, residual: Selects, rank: int, rounds: int
) -> tuple[Tensor, Tensor]:
    """The mask, bool ``[out, in]``, and the sparse part ``[out, in]``, in the diagonals of the metric."""
    kron = as_kron(metric)
    rows = _scale(kron.left, weight.shape[0], weight.device)
    columns = _scale(kron.right, weight.shape[1], weight.device)
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


def _sparsities(residual: Selects) -> list[float | None]:
    """The sparsities to try; ``None`` for a pattern without a free sparsity (n:m)."""
    return [*_SPARSITIES] if hasattr(residual.pattern, "sparsity") else [None]


def _moderate(shape: tuple[int, int]) -> int:
    """A rank of about a sixth of the weight's parameters."""
    rank = shape[0] * shape[1] // (6 * (shape[0] + shape[1]))
    return max(1, rank // MULTIPLE * MULTIPLE or rank)


def _scale(side: Side, size: int, device: torch.device) -> Tensor:
    """The root of a side's diagonal; zeros are raised a little, so that the scaling can be undone."""
    diagonal = side.diagonal(size, device).clamp_min(0)
    return (diagonal + 1e-6 * diagonal.mean().clamp_min(torch.finfo(torch.float32).tiny)).sqrt()


def _leading(matrix: Tensor, rank: int, start: Tensor | None) -> Tensor:
    """An orthonormal basis ``[out, rank]`` of the leading left singular vectors of ``matrix`` ``[out, in]``."""
    if start is None:
        return torch.linalg.svd(matrix, full_matrices=False).U[:, :rank]
    return torch.linalg.qr(matrix @ (matrix.T @ start)).Q
