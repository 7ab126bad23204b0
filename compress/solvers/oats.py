"""OATS: low rank plus sparse, found in turn (arXiv:2409.13652), then both fitted in the whole metric."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from compress.linalg.conjugate_gradient import refit
from compress.linalg.weighted_svd import as_kron, take_apart
from compress.score.metric import Kron, Metric, Side
from compress.structures.choices import MULTIPLE, Choice, Option, along_ranks
from compress.structures.low_rank.factors import spectrum

from .base import Problem, Solution, asymmetric_target

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
        asymmetric: hold the output on compressed inputs against the dense layer's on dense inputs.
        damping: of that, relative to the mean of the Gram matrix's diagonal.
    """

    rounds: int = 80
    refits: int = 3
    steps: int = 30
    asymmetric: bool = False
    damping: float = 0.01

    requires: ClassVar[frozenset[str]] = frozenset({"compensate", "thresholds"})
    score: ClassVar[str] = "activation"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"cross"}) if self.asymmetric else frozenset()

    def solve(self, problem: Problem, start: Solution | None = None) -> Solution:
        if self.asymmetric:
            problem = replace(problem, weight=asymmetric_target(problem, self.damping))
        structure: Any = problem.structure
        weight, metric = problem.weight, problem.metric
        mask, sparse = alternated(
            weight, metric, structure.inner, structure.rank_of(problem.shape), self.rounds
        )
        best: Solution | None = None
        for again in range(self.refits + 1):
            inner = structure.inner.under(sparse, mask, metric)
            other = structure.inner.project(sparse, inner)
            parameters = structure.with_factors(weight, metric, inner, other)
            theta = structure.project(weight, parameters)
            info = spectrum(parameters.factors.values, structure.rank_of(problem.shape))
            found = Solution(theta, parameters, info)
            if best is not None and problem.relative_error(theta) >= problem.relative_error(best.theta):
                break
            best = found
            if again < self.refits:
                sparse = refit(weight - parameters.factors.dense, mask, metric, other, steps=self.steps)
        assert best is not None
        return best

    def options(self, problem: Problem) -> list[Option]:
        """Every rank alone and beside sparse parts of several densities, with what each loses.

        A sparse part is found once for a moderate rank, in a few rounds and one refit, and then held for all ranks: what is
        told is never less than a solution in full loses.
        """
        structure: Any = problem.structure
        weight, metric, shape = problem.weight, problem.metric, problem.shape
        found = along_ranks(take_apart(weight, metric).values, structure, shape, Choice(0, sparsity=1.0))
        for sparsity in _densities(structure.inner):
            sample = structure.chosen(Choice(_moderate(shape), sparsity=sparsity))
            mask, sparse = alternated(weight, metric, sample.inner, sample.factors.rank, _TRIED_ROUNDS)
            low = sample.with_factors(weight, metric, sample.inner.under(sparse, mask, metric), sparse)
            sparse = refit(weight - low.factors.dense, mask, metric, sparse, steps=_TRIED_STEPS)
            rest = take_apart(weight - sparse, metric)
            found += along_ranks(rest.values, structure, shape, Choice(0, sparsity=sparsity))
        return found


def alternated(weight: Tensor, metric: Metric, inner: Any, rank: int, rounds: int) -> tuple[Tensor, Tensor]:
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
        mask = inner.fit(rest, Kron()).mask
        sparse = rest * mask
    return mask, sparse / (rows.unsqueeze(1) * columns)


def _densities(inner: Any) -> list[float | None]:
    """Shares to leave out; a pattern of its own leaves none to choose."""
    return [*_TRIED] if hasattr(inner.pattern, "sparsity") else [None]


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
