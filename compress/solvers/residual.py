"""Any solver for the part of a sum that stands beside the factors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from compress.structures.low_rank.sums import SumParameters

from .base import Problem, Solution, WeightSolver


@dataclass(frozen=True)
class Beside:
    """``solver`` on the weight less the factors, in the structure of the other part.

    So ``[gptq, eora]`` gives what GPTQ leaves over to the factors, and ``[gptq, eora, gptq, eora]`` does it in turn (as
    LoftQ, arXiv:2310.08659, and CALDERA, arXiv:2405.18886, do).
    """

    solver: WeightSolver

    requires: ClassVar[frozenset[str]] = frozenset({"compensate"})

    @property
    def needs(self) -> frozenset[str]:
        return self.solver.needs

    @property
    def score(self) -> str:
        return self.solver.score

    @property
    def guarded(self) -> bool:
        return getattr(self.solver, "guarded", True)

    def solve(self, problem: Problem, start: Solution | None = None) -> Solution:
        structure: Any = problem.structure
        factors = structure.nothing(problem.weight) if start is None else start.parameters.factors
        low = factors.dense
        begin = None
        if start is not None:
            other = structure.other(start.theta, start.parameters)
            begin = Solution(other, start.parameters.inner, start.info)
        inner = replace(problem, weight=problem.weight - low, structure=structure.inner)
        found = self.solver.solve(inner, begin)
        return Solution(low + found.theta, SumParameters(factors, found.parameters, found.theta), found.info)
