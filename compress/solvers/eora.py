"""EoRA: low-rank factors that compensate for another solver's error (arXiv:2410.21271)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compress.structures.base import Structure
from compress.structures.low_rank.factors import spectrum
from compress.structures.low_rank.sums import FactorsAnd

from .base import Problem, Solution, nearest_point


@dataclass(frozen=True)
class EoRA:
    """EoRA: the factors nearest to ``W − Q`` in the metric, for the residual Q of the solver before it (eq. 4 and 5).

    Without a solver before it Q is the structure's plain rounding. The error in the metric never rises.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = FactorsAnd
    score: ClassVar[str] = "activation"

    def solve(self, problem: Problem[FactorsAnd[Structure]], start: Solution | None = None) -> Solution:
        """Keep the residual of ``start`` fp32 ``[out, in]`` and fit the factors to what it leaves, in the metric."""
        structure, target = problem.structure, problem.target
        start = start or nearest_point(problem, target)
        residual = structure.residual_of(start.theta, start.parameters)
        parameters = structure.with_factors(target, problem.metric, start.parameters.residual, residual)
        theta = structure.project(target, parameters)
        before, after = problem.relative_error(residual), problem.relative_error(theta)
        rank = parameters.factors.left.values.shape[1]
        info = {**start.info, **spectrum(parameters.factors.values, rank), "uncompensated": before}
        return Solution(theta, parameters, info) if after <= before else start
