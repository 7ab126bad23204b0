"""Group scales: round each group of columns anew under several ranges and zero points, and keep the best for each row.

With all other groups fixed, the loss ``tr(Δ C Δᵀ)`` of group g is ``(a − θ_g) C_gg (a − θ_g)ᵀ`` plus a constant, where
``a = θ_g + (Δ C)_g C_gg⁻¹`` is the optimum without a grid. GPTQ's recursion rounds a within the group alone, which is cheap
enough to try many ranges. A row of a group changes only where its loss falls, so that the whole loss never rises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from compress.linalg.cholesky import inverse_root
from compress.linalg.column_recursion import round_columns
from compress.linalg.rounding import ColumnRounder
from compress.score.metric import Kron, Side
from compress.structures.base import HasGroups, HasShifts, HasZeroPoints

from .base import Problem, Solution, nearest_point


@dataclass(frozen=True)
class GroupScales:
    """Group scales for an earlier solver's weight, or for plain rounding.

    Attributes:
        passes: rounds over all groups, at most; it ends early when a round gains less than a thousandth.
        ratios: ranges that are tried, relative to the present one; then zero points one code lower and higher.
        damping: added to C's diagonal, relative to its mean, so that errors that the calibration tokens hardly see still count.
    """

    passes: int = 3
    ratios: tuple[float, ...] = (0.82, 0.9, 0.95, 1.0, 1.05, 1.12)
    damping: float = 0.01

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = HasGroups
    score: ClassVar[str] = "activation"
    two_sided: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.ratios or not all(ratio > 0 for ratio in self.ratios):
            raise ValueError("ratios is a list of numbers above 0")

    def solve(self, problem: Problem[HasGroups], start: Solution | None = None) -> Solution:
        """Choose the scale of every group of ``start`` fp32 ``[out, in]`` anew, with the errors of the other groups known."""
        structure, target = problem.structure, problem.target
        start = start or nearest_point(problem, target)
        if not isinstance(problem.metric, Kron) or not structure.rows_apart:
            return start
        gram = problem.metric.right.full(target.shape[1], target.device).clone()
        nonzero = gram.diagonal() > 0
        if not bool(nonzero.any()):
            return start
        # A column whose input is always zero gets the mean: it neither moves others nor is moved.
        mean = gram.diagonal()[nonzero].mean()
        gram.diagonal().add_(torch.where(nonzero, self.damping * mean, mean))
        state = _State(structure, target, start.theta.clone(), start.parameters, gram)
        first = loss = state.loss()
        for _ in range(self.passes):
            for group in range(state.groups):
                state.improve(group, self.ratios)
            before, loss = loss, state.loss()
            if not loss < 0.999 * before:
                break
        if not loss <= first:
            return start
        info = {**start.info, "group_scales_gain": 1 - loss / first if first > 0 else 0.0}
        return Solution(state.theta, state.parameters, info)


@dataclass(eq=False)
class _State:
    """The weight during the search: ``theta`` fp32 ``[out, in]`` under ``parameters``."""

    structure: HasGroups
    target: Tensor
    theta: Tensor
    parameters: Any
    gram: Tensor

    @property
    def groups(self) -> int:
        return self.structure.scales_of(self.parameters).shape[1]

    def loss(self) -> float:
        delta = self.target - self.theta
        return float(((delta @ self.gram) * delta).sum(dtype=torch.float64))

    def improve(self, group: int, ratios: Sequence[float]) -> None:
        """Round one group anew, for the rows whose loss falls."""
        width = self.theta.shape[1] // self.groups
        columns = slice(group * width, (group + 1) * width)
        corner = self.gram[columns, columns]
        gradient = (self.target - self.theta) @ self.gram[:, columns]
        old = self.theta[:, columns]
        optimum = old + torch.linalg.solve(corner, gradient.T).T
        factor = inverse_root(Side(corner), corner, 0.0, descending=True)
        grid, present = self.structure.group(self.parameters, group)
        delta = optimum - old
        best = old, present, ((delta @ corner) * delta).sum(1)
        best = _better(best, grid, grid.clipped(present, ratios), optimum, factor.root, factor.order)
        if shifted := _shifted(grid, best[1]):
            best = _better(best, grid, shifted, optimum, factor.root, factor.order)
        self.theta[:, columns] = best[0]
        self.parameters = self.structure.with_group(self.parameters, group, best[1])


def _shifted(grid: HasGroups, parameters: Any) -> list[Any]:
    """The grid moved to either side: by what it says, or with its zero points one code lower and one higher."""
    if isinstance(grid, HasShifts):
        return grid.shifted(parameters)
    if not isinstance(grid, HasZeroPoints) or grid.symmetric:
        return []
    zeros = grid.zeros_of(parameters)
    return [grid.with_zeros(parameters, (zeros + step).clamp(0, grid.top)) for step in (-1, 1)]


def _better(
    best: tuple[Tensor, Any, Tensor],
    grid: HasGroups,
    trials: Sequence[Any],
    optimum: Tensor,
    root: Tensor,
    order: Tensor,
) -> tuple[Tensor, Any, Tensor]:
    """Row by row the best of ``best`` (values, parameters, losses) and of ``optimum`` ``[out, width]`` under each trial."""
    rows, width = optimum.shape
    stacked = grid.stacked(trials, rows)
    rounder = grid.column_rounder(stacked, (len(trials) * rows, width))
    values, costs = _round(optimum.T[order].repeat(1, len(trials)), root, order, rounder)
    theta, parameters, least = best
    for trial, value, cost in zip(trials, values.split(rows), costs.split(rows), strict=True):
        # The margin covers rounding errors of the losses, which are computed in two ways.
        better = cost < least * (1 - 1e-4)
        theta = torch.where(better.unsqueeze(1), value, theta)
        least = torch.where(better, cost, least)
        parameters = grid.where(better.unsqueeze(1), trial, parameters)
    return theta, parameters, least


def _round(work: Tensor, root: Tensor, order: Tensor, rounder: ColumnRounder) -> tuple[Tensor, Tensor]:
    """GPTQ's recursion on ``work`` ``[width, rows]`` in the ``order``: values ``[rows, width]``, losses ``[rows]``."""
    costs = round_columns(work, root, rounder, order.tolist())
    values = torch.empty_like(work)
    values[order] = work  # a list would be copied to the device
    return values.T, costs
