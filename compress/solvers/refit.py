"""The best values on the mask that an earlier solver chose: linear least squares, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from compress.linalg.conjugate_gradient import refit

from .base import Problem, Solution


@dataclass(frozen=True)
class Refit:
    """``min ‖(W − Θ) C^½‖`` over Θ on a fixed mask.

    Without a solver before it the mask is the structure's own. On a grid the least-squares values are rounded, and taken
    where that is nearer than what was there.

    Attributes:
        steps: steps of conjugate gradients, at most.
    """

    steps: int = 100

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[frozenset[str]] = frozenset({"project", "select"})
    score: ClassVar[str] = "activation"

    def solve(self, problem: Problem, start: Solution | None = None) -> Solution:
        structure: Any = problem.structure
        weight, metric = problem.weight, problem.metric
        if start is None:
            parameters = structure.fit(weight, metric)
            start = Solution(structure.project(weight, parameters), parameters)
        mask = start.parameters.mask
        free = refit(weight, mask, metric, start.theta, steps=self.steps)
        parameters = structure.under(free, mask, metric)
        theta = structure.project(free, parameters)
        if metric.loss(weight - theta) > metric.loss(weight - start.theta):
            return start
        return Solution(theta, parameters, start.info)
