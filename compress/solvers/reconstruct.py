"""Reconstruction: train what a mask keeps of a block's weights, and the mask with it, on the error of the block's output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from compress.structures.base import Selects

from .base import BlockProblem, Problem, Solution
from .block_training import Schedule, train_block


@dataclass(frozen=True)
class Reconstruct:
    """Reconstruction: ``Θ = V · mask`` with values V that follow the gradient with momentum, in steps that fall linearly to 0.

    A least-squares refit fits each weight by itself to its own outputs; here all weights of a block make up for each other.
    During the first ``masks`` share of the steps the pattern is chosen anew in each, from ``V²`` times the elements' costs. The
    gradient then goes straight through the mask to dropped values too, which decay, so that masks settle (SR-STE,
    arXiv:2102.04010, eq. 9). The iterate of least error on held-out batches is returned, the start included.

    Attributes:
        steps: training batches.
        rate: root mean square of the first step of V, relative to that of the weight.
        momentum: share of the last step's direction that is kept.
        decay: pull of dropped values to 0 while masks move; with 1 a dropped value of the weight's root mean square is pulled
            as strongly as gradients move it.
        masks: share of the steps, the first ones, in which masks move; 0 holds the earlier solver's.
        tokens: in one step, about; rounded to whole batches of the calibration windows.
        judged: share of the batches that are held out.
        checks: how often the error on them is measured.
    """

    steps: int = 200
    rate: float = 0.02
    momentum: float = 0.9
    decay: float = 1.0
    masks: float = 0.0
    tokens: int = 2048
    judged: float = 0.125
    checks: int = 4

    scope: ClassVar[str] = "block"
    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = Selects
    score: ClassVar[str] = "activation"

    def __post_init__(self) -> None:
        Schedule(self.steps, self.judged, self.checks)
        if not 0 <= self.masks <= 1 or not 0 <= self.momentum < 1 or self.decay < 0:
            raise ValueError("masks lies in [0, 1], momentum in [0, 1); decay is not negative")
        if self.rate <= 0 or self.tokens < 1:
            raise ValueError("rate is above 0, tokens are at least 1")

    def solve(self, block: BlockProblem[Selects], starts: Mapping[str, Solution]) -> dict[str, Solution]:
        """Train the kept values of the block's weights under their masks against the dense block's outputs."""
        trained = {
            name: _Trained.begin(self, problem, starts[name]) for name, problem in block.problems.items()
        }
        return train_block(block, starts, trained, Schedule(self.steps, self.judged, self.checks))


@dataclass(eq=False)
class _Trained:
    """The values of one weight, fp32 ``[out, in]``, and its mask, bool ``[out, in]``.

    Where masks move, a dropped value starts at 0, so that the first mask is the start's.
    """

    settings: Reconstruct
    problem: Problem[Selects]
    mask: Tensor
    values: Tensor
    size: float
    velocity: Tensor = field(repr=False)

    @classmethod
    def begin(cls, settings: Reconstruct, problem: Problem[Selects], start: Solution) -> _Trained:
        mask = problem.structure.mask_of(start.parameters)
        values = (start.theta * mask).requires_grad_()
        size = float(problem.weight.square().mean().sqrt())
        return cls(settings, problem, mask, values, size, torch.zeros_like(values))

    def theta(self, done: float) -> Tensor:
        """Θ ``[out, in]``, differentiable in all values while masks move, and then in the kept ones."""
        if done >= self.settings.masks:
            return self.values * self.mask
        with torch.no_grad():
            self.mask = self._chosen()
        # The dropped values' gradient is that of the masked weight.
        return self.values - (self.values * ~self.mask).detach()

    @torch.no_grad()
    def update(self, done: float) -> bool:
        """One step; its size does not depend on that of the loss."""
        gradient = self.values.grad
        if gradient is None:
            return True
        if not bool(torch.isfinite(gradient.sum())):
            return False
        tiny = torch.finfo(gradient.dtype).tiny
        if done < self.settings.masks and self.size > 0:
            pull = self.settings.decay * float(gradient.square().mean().sqrt()) / self.size
            gradient = gradient + pull * self.values * ~self.mask
        self.velocity.mul_(self.settings.momentum).add_(gradient)
        length = self.settings.rate * self.size * (1 - done)
        self.values.sub_(self.velocity * (length / self.velocity.square().mean().sqrt().clamp_min(tiny)))
        self.values.grad = None
        return True

    @torch.no_grad()
    def solution(self) -> Solution:
        """The structure's nearest point under the mask."""
        structure, values = self.problem.structure, self.values.detach()
        parameters = structure.under(values, self.mask, self.problem.metric)
        return Solution(structure.project(values, parameters), parameters)

    def _chosen(self) -> Tensor:
        values = self.values.detach()
        cost = values.square() * self.problem.metric.elements(values)
        return self.problem.structure.pattern.choose(cost)
