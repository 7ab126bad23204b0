"""YAQA: rounding with feedback from both sides, so that rows make up for each other as columns do (arXiv:2505.22988).

GPTQ looks at what an error does to the layer's own output. With the gradients' Gram matrix on the left of the metric,
``tr(L Δ R Δᵀ)`` is what it does to the model's loss, to second order, and the rows of a weight are no longer apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from compress.linalg.cholesky import damped, inverse_root
from compress.linalg.conjugate_gradient import refit, refit_factors
from compress.linalg.two_sided import Grid, descend_both, round_both
from compress.score.metric import Kron, Side

from .base import Problem, Solution, asymmetric_target


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
        asymmetric: hold the output on compressed inputs against the dense layer's on dense inputs.
    """

    damping: float = 0.01
    rows: int | None = None
    block: int = 128
    passes: int = 1
    refit: int = 30
    asymmetric: bool = False

    requires: ClassVar[frozenset[str]] = frozenset({"project", "scales", "codes"})
    score: ClassVar[str] = "fisher"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"cross"}) if self.asymmetric else frozenset()

    def solve(self, problem: Problem, start: Solution | None = None) -> Solution:
        structure: Any = problem.structure
        if self.asymmetric:
            problem = replace(problem, weight=asymmetric_target(problem, self.damping))
        if start is None:
            parameters = structure.fit(problem.weight, problem.metric)
            start = Solution(structure.project(problem.weight, parameters), parameters)
        if not isinstance(problem.metric, Kron):
            return start
        target, metric = problem.weight, self._damped(problem.metric, problem.shape)
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

    def _rounded(self, problem: Problem, start: Solution) -> Solution:
        """Both sides' feedback, once through all columns and rows."""
        structure: Any = problem.structure
        target, metric = problem.weight, problem.metric
        assert isinstance(metric, Kron)
        if "select" in structure.capabilities:
            # The error splits: what the mask costs at best, plus the distance from those best values to the grid.
            target = refit(target, start.parameters.mask, metric, start.theta, steps=self.refit)
        left = inverse_root(metric.left, target.T, self.damping, descending=True)
        right = problem.input_root(self.damping, descending=True)
        here = (left.order.unsqueeze(1), right.order)
        grid = _grid(structure, start.parameters, target).at(here)
        theta = torch.empty_like(target)
        theta[here] = round_both(
            target[here], grid, left.root, right.root, self._together(len(target)), self.block
        )
        return _settled(structure, theta, start.parameters)

    def _descended(self, target: Tensor, metric: Kron, structure: Any, best: Solution) -> Solution:
        """Scales that are better for the codes, but for what rounding them costs, and then better codes."""
        theta, parameters = best.theta, best.parameters
        scale = structure.scales_of(parameters)
        if len(scale) == len(theta):
            factor = refit_factors(target, theta, metric, scale.shape[1])
            theta, parameters = structure.rescale(theta, parameters, scale * factor)
        left, right = metric.left.matrix, metric.right.matrix
        assert left is not None and right is not None
        grid = _grid(structure, parameters, theta)
        found = descend_both(target, theta, grid, left, right, self._together(len(theta)), self.block)
        return _settled(structure, found, parameters)


def _settled(structure: Any, theta: Tensor, parameters: Any) -> Solution:
    """``low + code · step`` as the structure itself computes it, to the last bit."""
    return Solution(structure.project(theta, parameters), parameters)


def _grid(structure: Any, parameters: Any, like: Tensor) -> Grid:
    low = structure.values(torch.zeros_like(like), parameters)
    step = structure.values(torch.ones_like(like), parameters) - low
    return Grid(low, step, structure.top)
