"""Residual solver: any solver of single weights, for the residual of a sum with low-rank factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compress.structures.base import Structure
from compress.structures.low_rank.sums import FactorsAnd, SumParameters

from .base import Problem, Solution, WeightSolver


@dataclass(frozen=True)
class ResidualSolver:
    """``solver`` on the weight less the factors, in the residual's structure.

    So ``[gptq, eora]`` gives what GPTQ leaves over to the factors, and ``[gptq, eora, gptq, eora]`` does it in turn (as
    LoftQ, arXiv:2310.08659, and CALDERA, arXiv:2405.18886, do).
    """

    solver: WeightSolver

    requires: ClassVar[type] = FactorsAnd

    @property
    def needs(self) -> frozenset[str]:
        """The statistics that the inner solver reads."""
        return self.solver.needs

    @property
    def score(self) -> str:
        """The score that the inner solver takes when the recipe names none."""
        return self.solver.score

    @property
    def guarded(self) -> bool:
        """Whether plain rounding overrules it, as it does the inner solver."""
        return getattr(self.solver, "guarded", True)

    @property
    def true_input(self) -> bool:
        """Whether the inner solver follows the true-input target."""
        return getattr(self.solver, "true_input", True)

    def solve(self, problem: Problem[FactorsAnd[Structure]], start: Solution | None = None) -> Solution:
        """Solve the residual fp32 ``[out, in]`` that the factors of ``start`` leave, or of zero factors without one."""
        structure = problem.structure
        factors = structure.zero_factors(problem.weight) if start is None else start.parameters.factors
        low = factors.dense
        first: Solution | None = None
        if start is not None:
            values = structure.residual_of(start.theta, start.parameters)
            first = Solution(values, start.parameters.residual, start.info)
        true_input = None if problem.true_input is None else problem.true_input - low
        residual = Problem(
            problem.weight - low,
            structure.residual,
            problem.metric,
            problem.statistics,
            problem.seed,
            problem.factors,
            true_input,
        )
        solution = self.solver.solve(residual, first)
        parameters = SumParameters(factors, solution.parameters, solution.theta)
        return Solution(low + solution.theta, parameters, solution.info)
