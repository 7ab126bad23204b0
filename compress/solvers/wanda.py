"""Wanda: drop the elements of least saliency and keep the rest as they are (arXiv:2306.11695)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from compress.recipe.registry import find
from compress.structures.base import Selects

from .base import Problem, Solution


@dataclass(frozen=True)
class Wanda:
    """Wanda: a mask by saliency, then the structure's nearest point under it.

    Attributes:
        saliency: ``wanda`` (``|w| ‖x_j‖``) or another registered one: ``magnitude``, ``fisher``, ``relative``, ``random``.
    """

    saliency: str = "wanda"

    requires: ClassVar[type] = Selects
    score: ClassVar[str] = "activation-diagonal"
    true_input: ClassVar[bool] = False

    def __post_init__(self) -> None:
        find("saliency", self.saliency)

    @property
    def needs(self) -> frozenset[str]:
        """The statistics that its saliency reads."""
        needs: frozenset[str] = self._saliency().needs
        return needs

    @property
    def guarded(self) -> bool:
        """Other saliencies do not follow the metric."""
        return self.saliency == "wanda"

    def solve(self, problem: Problem[Selects], start: Solution | None = None) -> Solution:
        """Keep the most salient elements of the weight fp32 ``[out, in]`` as they are; ``start`` is not read."""
        structure = problem.structure
        importance = self._saliency().importance(problem.weight, problem.statistics, problem.seed)
        mask = structure.pattern.choose(importance)
        parameters = structure.under(problem.weight, mask, problem.metric)
        return Solution(structure.project(problem.weight, parameters), parameters)

    def _saliency(self) -> Any:
        return find("saliency", self.saliency)()
