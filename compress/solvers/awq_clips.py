"""AWQ's clips: the clipped range of each group that harms the layer's outputs least (arXiv:2306.00978; the authors' search)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from compress.score.metric import Kron
from compress.structures.base import HasGroups

from .base import Problem, Solution, nearest_point


@dataclass(frozen=True)
class AWQClips:
    """AWQ's clips: round each group of columns to nearest under several ranges and keep the best for each row.

    The error of a range is that of the group's share of the outputs, ``(w − θ)_g C_gg (w − θ)_gᵀ`` with C the inputs' Gram
    matrix: other groups are taken to be exact. Follows the transform ``awq``, whose scales come first.

    Attributes:
        points: ranges that are tried, evenly spaced, the whole one included.
        smallest: the smallest one, relative to the extremes of the group.
    """

    points: int = 10
    smallest: float = 0.55

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = HasGroups
    score: ClassVar[str] = "activation"
    true_input: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.points < 1 or not 0 < self.smallest <= 1:
            raise ValueError("points is at least 1, and smallest lies between 0 and 1")

    def solve(self, problem: Problem[HasGroups], start: Solution | None = None) -> Solution:
        """The weight rounded to nearest under the chosen ranges; ranges that are shared by rows are not clipped."""
        structure, weight = problem.structure, problem.weight
        whole = nearest_point(problem, weight)
        if not isinstance(problem.metric, Kron) or not structure.rows_apart:
            return whole
        parameters = whole.parameters
        count = structure.scales_of(parameters).shape[1]
        width = weight.shape[1] // count
        gram = problem.metric.right.full(weight.shape[1], weight.device)
        clipped = 0
        for index in range(count):
            columns = slice(index * width, (index + 1) * width)
            grid, present = structure.group(parameters, index)
            chosen, changed = self._best(grid, present, weight[:, columns], gram[columns, columns])
            parameters = structure.with_group(parameters, index, chosen)
            clipped += changed
        theta = structure.project(weight, parameters)
        # Groups that were chosen one by one may harm the outputs more together.
        loss = problem.metric.loss
        if loss(weight - theta) > loss(weight - whole.theta):
            return whole
        return Solution(theta, parameters, {"clipped_groups": clipped / (count * len(weight))})

    def _best(self, grid: HasGroups, whole: Any, weight: Tensor, gram: Tensor) -> tuple[Any, int]:
        """The best range of each row of a group, and of how many rows it is a clipped one."""
        step = (1 - self.smallest) / max(1, self.points - 1)
        best, least = whole, self._errors(grid, whole, weight, gram)
        before = least
        for trial in grid.clipped(whole, [1 - step * place for place in range(1, self.points)]):
            errors = self._errors(grid, trial, weight, gram)
            better = errors < least
            best = grid.where(better.unsqueeze(1), trial, best)
            least = least.where(~better, errors)
        return best, int((least < before).sum())

    @staticmethod
    def _errors(grid: HasGroups, parameters: Any, weight: Tensor, gram: Tensor) -> Tensor:
        delta = weight - grid.project(weight, parameters)
        return ((delta @ gram) * delta).sum(1)
