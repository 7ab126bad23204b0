"""Refit: the best values on an earlier solver's mask, by linear least squares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compress.linalg.conjugate_gradient import refit
from compress.structures.base import Selects

from .base import Problem, Solution, nearest_point


@dataclass(frozen=True)
class Refit:
    """Refit: ``min ‖(W − Θ) C^½‖`` over Θ on a fixed mask.

    Without a solver before it the mask is that of the structure's nearest point. On a grid the least-squares values are
    rounded; they are taken only where the loss falls.

    Attributes:
        steps: steps of conjugate gradients, at most.
    """

    steps: int = 100

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = Selects
    score: ClassVar[str] = "activation"

    def solve(self, problem: Problem[Selects], start: Solution | None = None) -> Solution:
        """Keep the mask of ``start`` and fit the values fp32 ``[out, in]`` under it by least squares in the metric."""
        structure, target, metric = problem.structure, problem.target, problem.metric
        start = start or nearest_point(problem, target)
        mask = structure.mask_of(start.parameters)
        free = refit(target, mask, metric, start.theta, steps=self.steps)
        parameters = structure.under(free, mask, metric)
        theta = structure.project(free, parameters)
        if metric.loss(target - theta) > metric.loss(target - start.theta):
            return start
        return Solution(theta, parameters, start.info)
