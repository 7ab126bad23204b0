"""ALPS: the mask by ADMM, the values by least squares (arXiv:2406.07831)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from compress.linalg.admm import split
from compress.linalg.conjugate_gradient import refit
from compress.score.metric import Kron

from .base import Problem, Solution


@dataclass(frozen=True)
class ALPS:
    """Column-normalised ADMM until the mask settles, then conjugate gradients on it.

    Attributes:
        steps: of ADMM, at most.
        refine: steps of conjugate gradients (the paper takes 10).
    """

    steps: int = 300
    refine: int = 10

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[frozenset[str]] = frozenset({"project", "select"})
    score: ClassVar[str] = "activation"

    def solve(self, problem: Problem, start: Solution | None = None) -> Solution:
        structure: Any = problem.structure
        weight, metric = problem.weight, problem.metric
        assert isinstance(metric, Kron)
        mask = split(weight, metric, structure.pattern.choose, self.steps, problem.factors)
        values = refit(weight, mask, metric, weight, steps=self.refine)
        parameters = structure.under(values, mask, metric)
        return Solution(structure.project(values, parameters), parameters)
