"""``regrow``: masks that drop their smallest weights and grow as many others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from compress.train.masks.base import Weights, check_settled
from compress.train.masks.random import Random

STEPS, DRAWS = "#steps", "#draws"
"""Names in the state beside the masks: how many steps were taken, and the seed of the next draw."""


@dataclass(frozen=True)
class Regrow:
    """Sparse from the first step: every ``every`` steps each weight loses the share ``share`` of what it keeps, the smallest
    magnitudes, and gets as many new ones, which begin at 0; the share falls to 0 by a cosine. The first masks are those of
    ``random`` with ``ratios``.

    ``by: update`` grows where the optimizer's last update is largest, in the place of RigL's gradient (arXiv:1911.11134);
    ``random`` draws the places (SET, arXiv:1707.04780).
    """

    every: int = 10
    share: float = 0.3
    by: Literal["update", "random"] = "update"
    ratios: Literal["erk", "uniform"] = "erk"
    settled: float = 0.75

    name: ClassVar[str] = "regrow"

    def __post_init__(self) -> None:
        check_settled(self.settled)
        if self.every < 1 or not 0 < self.share <= 1:
            raise ValueError("every is at least 1, and share above 0 and up to 1")

    def begin(self, weights: Weights, sparsity: float, generator: torch.Generator) -> dict[str, Tensor]:
        """The first masks, counters, and the weights outside the masks at 0."""
        masks = Random(self.ratios).begin(weights, sparsity, generator)
        for name, weight in weights.items():
            weight.mul_(masks[name])
        draws = torch.randint(1 << 62, (), generator=generator)
        return {**masks, STEPS: torch.zeros((), dtype=torch.int64), DRAWS: draws}

    @torch.no_grad()
    def after_step(
        self, weights: Weights, state: dict[str, Tensor], *, sparsity: float, done: float, rate: float
    ) -> None:
        """See :class:`~compress.train.masks.base.Masks`."""
        state[STEPS] += 1
        moves = int(state[STEPS]) % self.every == 0
        share = self.share * 0.5 * (1 + math.cos(math.pi * done))
        for name, weight in weights.items():
            if moves:
                self._move(weight, state[name], share, state[DRAWS])
            weight.mul_(state[name])

    def _move(self, weight: Tensor, mask: Tensor, share: float, draws: Tensor) -> None:
        """Change a mask; what is grown is put to 0 in the weight."""
        count = min(round(share * int(mask.sum())), int((~mask).sum()))
        if self.by == "update":
            wish = weight.abs()
        else:
            wish = torch.rand(weight.shape, generator=torch.Generator().manual_seed(int(draws))).to(weight)
            draws += 1
        smallest = torch.where(mask, weight.abs(), torch.inf).flatten().argsort(stable=True)[:count]
        most = torch.where(mask, -1.0, wish).flatten().argsort(descending=True, stable=True)[:count]
        mask.view(-1)[smallest] = False
        mask.view(-1)[most] = True
        weight.view(-1)[most] = 0.0

    def settle(self, weights: Weights, state: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """See :class:`~compress.train.masks.base.Masks`."""
        return {name: state[name] for name in weights}
