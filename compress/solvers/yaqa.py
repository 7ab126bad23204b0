"""YAQA: rounding with feedback from both sides, so that rows make up for each other as columns do (arXiv:2505.22988).

GPTQ looks at what an error does to the layer's own output. With the gradients' Gram matrix on the left of the metric,
``tr(L Δ R Δᵀ)`` is what it does to the model's loss, to second order, and the rows of a weight are no longer apart.
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
from compress.structures.base import HasElements, HasScales, Selects

from .base import Problem, Solution, nearest_point


@runtime_checkable
class _Grid(HasElements, HasScales, Protocol):
    """Elements can be rounded in any order, under scales that can be fitted anew."""


@dataclass(frozen=True)
class YAQA:
    """Rounds element (i, j) of ``W + M_Lᵀ Δ + Δ M_R + M_Lᵀ Δ M_R`` (its eq. 6), M the strict triangles of both sides' LDL
    factors and Δ the errors made so far; then goes down the same loss in turns, scales and codes.

    The scales to begin with are an earlier solver's, or fitted ones. What it ends with never costs more than its start.

    Attributes:
        damping: added to the diagonals of L and R, relative to their means.
        rows: that are rounded together and take no notice of each other; a 96th of all, 4 to 32, if ``None``. Fewer are
            nearer and slower.
        block: columns whose updates are gathered into one matrix product.
        passes: of the descent, at most; it ends early when one gains less than a thousandth.
        refit: steps of least squares on the mask of an earlier solver, before its values are rounded.
    """

    damping: float = 0.01
    rows: int | None = None
    block: int = 128
    passes: int = 1
    refit: int = 30

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = _Grid
    score: ClassVar[str] = "fisher"

    def solve(self, problem: Problem[_Grid], start: Solution | None = None) -> Solution:
        structure, target = problem.structure, problem.target
        start = start or nearest_point(problem, target)
        if not isinstance(problem.metric, Kron):
            return start
        metric = self._damped(problem.metric, problem.shape)
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

    def _together(self, out: int) -> int:
        return min(32, max(4, out // 96)) if self.rows is None else self.rows

    def _damped(self, metric: Kron, shape: tuple[int, int]) -> Kron:
        """Errors that the calibration tokens hardly see still count."""
        sides = (metric.left.full(shape[0]), metric.right.full(shape[1]))
        return Kron(*(Side(damped(side, self.damping)) for side in sides))

    def _rounded(self, problem: Problem[_Grid], start: Solution) -> Solution:
        """Both sides' feedback, once through all columns and rows."""
        structure, target, metric = problem.structure, problem.target, problem.metric
        assert isinstance(metric, Kron)
        if isinstance(structure, Selects):
            # The error splits: what the mask costs at best, plus the distance from those best values to the grid.
            target = refit(target, structure.mask_of(start.parameters), metric, start.theta, steps=self.refit)
        left = inverse_root(metric.left, target.T, self.damping, descending=True)
        right = problem.input_root(self.damping, descending=True)
        here = (left.order.unsqueeze(1), right.order)
        rounder = structure.element_rounder(start.parameters, problem.shape)
        rounder = rounder.arranged(lambda matrix: matrix[here])
        theta = torch.empty_like(target)
        theta[here] = round_both(
            target[here], rounder, left.root, right.root, self._together(len(target)), self.block
        )
        return _settled(structure, theta, start.parameters)

    def _descended(self, target: Tensor, metric: Kron, structure: _Grid, best: Solution) -> Solution:
        """Scales that are better for the codes, but for what rounding them costs, and then better codes."""
        theta, parameters = best.theta, best.parameters
        scale = structure.scales_of(parameters)
        if len(scale) == len(theta):
            factor = refit_factors(target, theta, metric, scale.shape[1])
            theta, parameters = structure.rescale(theta, parameters, scale * factor)
        left, right = metric.left.matrix, metric.right.matrix
        assert left is not None and right is not None
        rounder = structure.element_rounder(parameters, (theta.shape[0], theta.shape[1]))
        found = descend_both(target, theta, rounder, left, right, self._together(len(theta)), self.block)
        return _settled(structure, found, parameters)


def _settled(structure: _Grid, theta: Tensor, parameters: Any) -> Solution:
    """The rounder's values as the structure itself computes them, to the last bit."""
    return Solution(structure.project(theta, parameters), parameters)
