"""HQQ: fit a grid without data by half-quadratic splitting (Badri & Shaji 2023, eq. 2–6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from compress.structures.base import HasCodes, HasScales, HasZeroPoints

from .base import Problem, Solution


@runtime_checkable
class _Grid(HasCodes, HasScales, Protocol):
    """Codes under scales."""


@dataclass(frozen=True)
class HQQ:
    """HQQ: ``min ‖W − s(Q − z)‖_p^p`` with p < 1, in which large errors (outliers) count less than under least squares.

    Each iteration takes the proximal step of the norm, ``E = sign(r) · max(0, |r| − |r|^(p−1)/β)`` in units of the scale for
    the residual r, and then fits the grid to ``W − E`` in closed form: the zero point as the rounded mean of ``Q − (W − E)/s``,
    if the grid has zero points to move, and the scale by least squares, which the paper does not fit. Each group keeps its best
    grid in the norm among those whose squared error is not above plain rounding's. A row whose loss in the score's metric would
    be above plain rounding's stays plainly rounded.

    Attributes:
        iterations: how many.
        norm: p.
        strength: the first β.
        growth: κ, the factor of β after each iteration.
    """

    iterations: int = 20
    norm: float = 0.7
    strength: float = 10.0
    growth: float = 1.01

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = _Grid
    score: ClassVar[str] = "magnitude"
    true_input: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.norm <= 1:
            raise ValueError(f"norm lies in (0, 1], not {self.norm}")

    def solve(self, problem: Problem[_Grid], start: Solution | None = None) -> Solution:
        """Fit zero points and scales of the weight fp32 ``[out, in]`` by half-quadratic splitting; ``start`` is not read."""
        structure, weight = problem.structure, problem.weight
        current = structure.fit(weight, problem.metric)
        scale = structure.scales_of(current)
        if scale.shape[0] != weight.shape[0]:  # rows share one scale
            return Solution(structure.project(weight, current), current)
        groups = scale.shape[1]
        best, theta = current, structure.project(weight, current)
        first = current
        limit = best_norm = None
        strength = self.strength
        for iteration in range(self.iterations + 1):
            residual = _grouped(weight - theta, groups)
            norm, squares = residual.abs().pow(self.norm).sum(-1), residual.square().sum(-1)
            if best_norm is None or limit is None:
                best_norm, limit = norm, squares
            better = (norm < best_norm) & (squares <= limit)
            best = structure.where(better, current, best)
            best_norm = torch.where(better, norm, best_norm)
            if iteration == self.iterations:
                break
            current, theta = self._iterate(structure, weight, theta, current, strength)
            strength *= self.growth
        losses = [problem.metric.row_losses(weight - structure.project(weight, p)) for p in (best, first)]
        best = structure.where((losses[0] <= losses[1]).unsqueeze(1), best, first)
        return Solution(structure.project(weight, best), best)

    def _iterate(
        self, structure: _Grid, weight: Tensor, theta: Tensor, parameters: Any, strength: float
    ) -> tuple[Any, Tensor]:
        """The grid fitted to the weight less the proximal error, and the nearest weight on it."""
        scale = structure.scales_of(parameters)
        groups = scale.shape[1]
        wide = scale.unsqueeze(-1)
        residual = _grouped(weight - theta, groups) / wide
        size = residual.abs()
        error = residual.sign() * (size - size.clamp_min(1e-8).pow(self.norm - 1) / strength).clamp_min(0)
        optimum = _grouped(weight, groups) / wide - error
        codes = _grouped(structure.codes(theta, parameters).float(), groups)
        if isinstance(structure, HasZeroPoints) and not structure.symmetric:
            zeros = (codes - optimum).mean(-1).round().clamp(0, structure.top)
            parameters = structure.with_zeros(parameters, zeros)
        centred = structure.values(codes.view(weight.shape), parameters)
        centred = _grouped(centred, groups) / wide
        whole = centred.square().sum(-1)
        factor = torch.where(
            whole > 0, (centred * optimum).sum(-1) / whole.clamp_min(1e-12), torch.ones_like(whole)
        )
        _, parameters = structure.rescale(theta, parameters, scale * factor.clamp(0.5, 2.0))
        return parameters, structure.project(weight, parameters)


def _grouped(matrix: Tensor, groups: int) -> Tensor:
    return matrix.reshape(matrix.shape[0], groups, -1)
