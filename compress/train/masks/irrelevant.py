"""``irrelevant``: weight decay for the smallest weights alone, growing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.train.masks.base import ByMagnitude, Weights, check_settled, largest


@dataclass(frozen=True)
class Irrelevant(ByMagnitude):
    """``w ← w (1 − rate · decay · a(t))`` for the weights that would be cut now, ``a(t) = least (most / least)^t`` (selective
    weight decay, arXiv:2011.10520), the step taken apart from the gradient."""

    decay: float = 0.1
    least: float = 1.0
    most: float = 1e4
    settled: float = 0.75

    name: ClassVar[str] = "irrelevant"

    def __post_init__(self) -> None:
        check_settled(self.settled)
        if not 0 < self.least <= self.most or self.decay <= 0:
            raise ValueError("decay and least are above 0, and most is at least least")

    @torch.no_grad()
    def after_step(
        self, weights: Weights, state: dict[str, Tensor], *, sparsity: float, done: float, rate: float
    ) -> None:
        """See :class:`~compress.train.masks.base.Masks`."""
        strength = min(1.0, rate * self.decay * self.least * (self.most / self.least) ** done)
        for weight in weights.values():
            weight.mul_(torch.where(largest(weight, sparsity), 1.0, 1 - strength))
