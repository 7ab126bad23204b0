"""Nearest: fit the structure to the weight and take its nearest point (round to nearest, magnitude pruning, SVD)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compress.structures.base import Structure

from .base import Problem, Solution, nearest_point


@dataclass(frozen=True)
class Nearest:
    """Nearest: the projection of the weight. Elements do not interact, so that no data is needed."""

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = Structure
    score: ClassVar[str] = "magnitude"
    true_input: ClassVar[bool] = False

    def solve(self, problem: Problem[Structure], start: Solution | None = None) -> Solution:
        """The nearest allowed weight fp32 ``[out, in]`` under fitted parameters; ``start`` is not read."""
        return nearest_point(problem, problem.weight)
