"""ALPS: prune with a mask found by ADMM and values fitted by least squares (arXiv:2406.07831)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compress.linalg.admm import split
from compress.linalg.conjugate_gradient import refit
from compress.score.metric import Kron
from compress.structures.base import Selects

from .base import Problem, Solution


@dataclass(frozen=True)
class ALPS:
    """ALPS: ADMM in normalised coordinates until the mask settles, then conjugate gradients on the mask.

    Attributes:
        steps: steps of ADMM, at most.
        refine: steps of conjugate gradients; 10 in the paper.
    """

    steps: int = 300
    refine: int = 10

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = Selects
    score: ClassVar[str] = "activation"
    two_sided: ClassVar[bool] = True

    def solve(self, problem: Problem[Selects], start: Solution | None = None) -> Solution:
        """Find the mask by ADMM, then the values fp32 ``[out, in]`` under it by conjugate gradients; ``start`` is not read."""
        structure, target, metric = problem.structure, problem.target, problem.metric
        assert isinstance(metric, Kron)
        found = split(target, metric, structure.pattern.choose, self.steps, problem.factors)
        values = refit(target, found.mask, metric, found.values, steps=self.refine)
        parameters = structure.under(values, found.mask, metric)
        return Solution(structure.project(values, parameters), parameters)
