"""EoRA: what any other solver has left over, given to a low-rank part (arXiv:2410.21271)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from compress.structures.low_rank.factors import spectrum

from .base import Problem, Solution


@dataclass(frozen=True)
class EoRA:
    """The factors nearest to ``W − Q`` in the metric, for the Q that the solver before it has found (eq. 4 and 5).

    It begins at the structure's plain rounding where there is none before it. The error in the metric never rises.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[frozenset[str]] = frozenset({"compensate"})
    score: ClassVar[str] = "activation"

    def solve(self, problem: Problem, start: Solution | None = None) -> Solution:
        structure: Any = problem.structure
        weight, metric = problem.weight, problem.metric
        if start is None:
            parameters = structure.fit(weight, metric)
            start = Solution(structure.project(weight, parameters), parameters)
        other = structure.other(start.theta, start.parameters)
        parameters = structure.with_factors(weight, metric, start.parameters.inner, other)
        theta = structure.project(weight, parameters)
        before, after = problem.relative_error(other), problem.relative_error(theta)
        rank = parameters.factors.left.values.shape[1]
        info = {**start.info, **spectrum(parameters.factors.values, rank), "uncompensated": before}
        return Solution(theta, parameters, info) if after <= before else start
