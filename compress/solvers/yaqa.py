"""YAQA: rounding with feedback from both sides, so that rows compensate for each other as columns do (arXiv:2505.22988).

GPTQ minimises the error of the layer's output. With the gradients' Gram matrix on the left of the metric,
``tr(L Δ R Δᵀ)`` is the change of the model's loss to second order, and the rows of a weight interact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from compress.linalg.cholesky import damped, inverse_root
from compress.linalg.conjugate_gradient import refit, refit_factors
from compress.linalg.two_sided import descend_both, round_both
from compress.score.metric import Kron, Side
from compress.structures.base import HasElements, HasScales, RefitsScales, Selects

from .base import Problem, Solution, nearest_point


@runtime_checkable
class _Grid(HasElements, HasScales, Protocol):
    """Elements can be rounded in any order, under scales that can be fitted anew."""


@dataclass(frozen=True)
class YAQA:
    """YAQA: round element (i, j) of ``W + M_Lᵀ Δ + Δ M_R + M_Lᵀ Δ M_R`` (eq. 6), then descend on scales and codes in turn.

    M are the strict triangles of both sides' LDL factors and Δ the errors so far. The first scales are an earlier solver's, or
    fitted ones. The loss never rises above that of the start.

    Attributes:
        damping: added to the diagonals of L and R, relative to their means.
        rows: rows that are rounded together without feedback between them; a 96th of all, 4 to 32, if ``None``. Fewer are more
            exact and slower.
        block: columns whose updates are gathered into one matrix product.
        passes: rounds of the descent, at most; it ends early when a round gains less than a thousandth.
        refit: steps of least squares on an earlier solver's mask, before its values are rounded.
    """

    damping: float = 0.01
    rows: int | None = None
    block: int = 128
    passes: int = 1
    refit: int = 30

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = _Grid
    score: ClassVar[str] = "fisher"
    two_sided: ClassVar[bool] = True

    def solve(self, problem: Problem[_Grid], start: Solution | None = None) -> Solution:
        """Round the weight fp32 ``[out, in]`` tile by tile; errors are spread over the rows and columns to come."""
        structure, target = problem.structure, problem.target
        start = start or nearest_point(problem, target)
        if not isinstance(problem.metric, Kron):
            return start
        metric = self._damped(problem.metric, problem.weight)
        first = least = metric.loss(target - start.theta)
        best = start
        for turn in range(self.passes + 1):
            trial = (
                self._descended(target, metric, structure, best) if turn else self._rounded(problem, start)
            )
            loss = metric.loss(target - trial.theta)
            gained = least - loss
            if gained > 0:
                best, least = trial, loss
            if turn and gained < 1e-3 * loss:
                break
        gain = {"yaqa_gain": 1 - least / first} if first > 0 else {}
        return replace(best, info={**start.info, **gain})

    def _rows_at_once(self, out: int) -> int:
        return min(32, max(4, out // 96)) if self.rows is None else self.rows

    def _damped(self, metric: Kron, weight: Tensor) -> Kron:
        """The metric with both sides damped, so that errors that the calibration tokens hardly see still count."""
        rows, columns = weight.shape
        sides = (metric.left.full(rows, weight.device), metric.right.full(columns, weight.device))
        return Kron(*(Side(damped(side, self.damping)) for side in sides))

    def _rounded(self, problem: Problem[_Grid], start: Solution) -> Solution:
        """One pass over all rows and columns with feedback from both sides."""
        structure, target, metric = problem.structure, problem.target, problem.metric
        assert isinstance(metric, Kron)
        if isinstance(structure, Selects):
            # The error splits into that of the best values on the mask and the distance from these to the grid.
            target = refit(target, structure.mask_of(start.parameters), metric, start.theta, steps=self.refit)
        left = inverse_root(metric.left, target.T, self.damping, descending=True)
        right = problem.input_root(self.damping, descending=True)
        order = (left.order.unsqueeze(1), right.order)
        rounder = structure.element_rounder(start.parameters, problem.shape)
        rounder = rounder.arranged(lambda matrix: matrix[order])
        theta = torch.empty_like(target)
        theta[order] = round_both(
            target[order], rounder, left.root, right.root, self._rows_at_once(len(target)), self.block
        )
        return _projected(structure, theta, start.parameters)

    def _descended(self, target: Tensor, metric: Kron, structure: _Grid, best: Solution) -> Solution:
        """Scales re-fitted to the codes and rounded to their dtype, then one round of coordinate descent."""
        theta, parameters = best.theta, best.parameters
        left, right = metric.left.matrix, metric.right.matrix
        assert left is not None and right is not None
        scale = structure.scales_of(parameters)
        if isinstance(structure, RefitsScales):
            # In the right side alone: the loss of the turn decides.
            theta, parameters = structure.refit(target, theta, parameters, right)
        elif len(scale) == len(theta):
            factor = refit_factors(target, theta, metric, scale.shape[1])
            theta, parameters = structure.rescale(theta, parameters, scale * factor)
        rounder = structure.element_rounder(parameters, (theta.shape[0], theta.shape[1]))
        values = descend_both(target, theta, rounder, left, right, self._rows_at_once(len(theta)), self.block)
        return _projected(structure, values, parameters)


def _projected(structure: _Grid, theta: Tensor, parameters: Any) -> Solution:
    """The allowed weight nearest to ``theta``, to the last bit as the structure computes it."""
    return Solution(structure.project(theta, parameters), parameters)
