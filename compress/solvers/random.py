"""Random search: masks and roundings drawn at random, the null that every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from compress.structures.base import HasCodes, Selects, Structure

from .base import Problem, Solution


@dataclass(frozen=True)
class RandomSearch:
    """Random search: the best of a few random points of the structure, by loss in the metric.

    A mask is drawn uniformly among those that the pattern allows; values are the nearest under it. On a grid an element is
    rounded to its upper neighbour with the probability of its position between the neighbours (stochastic rounding,
    arXiv:1502.02551). Parameters (scales) are the fitted ones throughout.

    Attributes:
        tries: number of draws, at least 1.
    """

    tries: int = 1

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = Structure
    score: ClassVar[str] = "activation"
    guarded: ClassVar[bool] = False
    """Plain rounding is nearer by design."""

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise ValueError("tries is at least 1")

    def solve(self, problem: Problem[Structure], start: Solution | None = None) -> Solution:
        """The best of several random allowed weights fp32 ``[out, in]`` under the problem's seed, ``start`` among them."""
        generator = torch.Generator().manual_seed(problem.seed)
        fitted = problem.structure.fit(problem.target, problem.metric)
        best, least = start, float("inf")
        if start is not None:
            least = problem.metric.loss(problem.target - start.theta)
        for _ in range(self.tries):
            drawn = _draw(problem, fitted, generator)
            loss = problem.metric.loss(problem.target - drawn.theta) if self.tries > 1 else 0.0
            if best is None or loss < least:
                best, least = drawn, loss
        assert best is not None
        return best


def _draw(problem: Problem[Structure], fitted: Any, generator: torch.Generator) -> Solution:
    structure, weight = problem.structure, problem.target
    chance = torch.rand(weight.shape, generator=generator).to(weight.device)
    if isinstance(structure, Selects):
        parameters = structure.under(weight, structure.pattern.choose(chance), problem.metric)
        return Solution(structure.project(weight, parameters), parameters)
    if not isinstance(structure, HasCodes):
        return Solution(structure.project(weight, fitted), fitted)
    codes: Tensor = (structure.position(weight, fitted) + chance).floor().clamp(0, structure.top)
    return Solution(structure.values(codes, fitted), fitted)
