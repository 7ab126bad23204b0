"""Round to nearest: fit the structure to the weight, take the nearest point (RTN, magnitude pruning, SVD)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Problem, Solution


@dataclass(frozen=True)
class Nearest:
    """The projection of the weight itself; each element by itself, so no data is needed."""

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[frozenset[str]] = frozenset({"project"})
    score: ClassVar[str] = "magnitude"

    def solve(self, problem: Problem, start: Solution | None = None) -> Solution:
        parameters = problem.structure.fit(problem.weight, problem.metric)
        return Solution(problem.structure.project(problem.weight, parameters), parameters)
