"""EoRA: what any other solver has left over, given to a low-rank part (arXiv:2410.21271)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compress.structures.base import Structure
from compress.structures.low_rank.factors import spectrum
from compress.structures.low_rank.sums import FactorsAnd

from .base import Problem, Solution, nearest_point


@dataclass(frozen=True)
class EoRA:
    """The factors nearest to ``W − Q`` in the metric, for the Q that the solver before it has found (eq. 4 and 5).

    It begins at the structure's plain rounding where there is none before it. The error in the metric never rises.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = FactorsAnd
    score: ClassVar[str] = "activation"

    def solve(self, problem: Problem[FactorsAnd[Structure]], start: Solution | None = None) -> Solution:
        structure, target = problem.structure, problem.target
        start = start or nearest_point(problem, target)
        residual = structure.residual_of(start.theta, start.parameters)
        parameters = structure.with_factors(target, problem.metric, start.parameters.residual, residual)
        theta = structure.project(target, parameters)
        before, after = problem.relative_error(residual), problem.relative_error(theta)
        rank = parameters.factors.left.values.shape[1]
        info = {**start.info, **spectrum(parameters.factors.values, rank), "uncompensated": before}
        return Solution(theta, parameters, info) if after <= before else start
