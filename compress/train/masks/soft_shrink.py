"""``soft-shrink``: the smallest weights shrink a little in every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.train.masks.base import ByMagnitude, Weights, check_settled, largest


@dataclass(frozen=True)
class SoftShrink(ByMagnitude):
    """``w ← (1 − share) w`` for the weights outside the largest ones, chosen anew in every step, so that they can come
    back (ISS-P, arXiv:2303.09650)."""

    share: float = 0.05
    settled: float = 0.75

    name: ClassVar[str] = "soft-shrink"

    def __post_init__(self) -> None:
        check_settled(self.settled)
        if not 0 < self.share <= 1:
            raise ValueError("share is above 0 and up to 1")

    @torch.no_grad()
    def after_step(
        self, weights: Weights, state: dict[str, Tensor], *, sparsity: float, done: float, rate: float
    ) -> None:
        """See :class:`~compress.train.masks.base.Masks`."""
        for weight in weights.values():
            weight.mul_(torch.where(largest(weight, sparsity), 1.0, 1 - self.share))
