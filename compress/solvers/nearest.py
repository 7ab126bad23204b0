"""Round to nearest: fit the structure to the weight, take the nearest point (RTN, magnitude pruning, SVD)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compress.structures.base import Structure

from .base import Problem, Solution, nearest_point


@dataclass(frozen=True)
class Nearest:
    """The projection of the weight itself; each element by itself, so no data is needed."""

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = Structure
    score: ClassVar[str] = "magnitude"
    true_input: ClassVar[bool] = False

    def solve(self, problem: Problem[Structure], start: Solution | None = None) -> Solution:
        return nearest_point(problem, problem.weight)
