"""``l0``: a smooth count of weights other than 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.train.masks.base import ByMagnitude, Weights, check_settled
from compress.train.masks.lq import cut


@dataclass(frozen=True)
class L0(ByMagnitude):
    """Steps down ``Σ 1 − exp(−w² / 2σ²)``, the smoothed ℓ0 (Mohimani et al., arXiv:0809.2508), of the size ``strength · σ²``:
    ``w ← w (1 − strength · exp(−w² / 2σ²))``.

    σ is ``width`` times the magnitude of the cut, anew in every step: weights well above it stay, whatever the strength.
    """

    strength: float = 0.05
    width: float = 0.5
    settled: float = 0.75

    name: ClassVar[str] = "l0"

    def __post_init__(self) -> None:
        check_settled(self.settled)
        if not 0 < self.strength <= 1 or self.width <= 0:
            raise ValueError("strength is above 0 and up to 1, and width above 0")

    @torch.no_grad()
    def after_step(
        self, weights: Weights, state: dict[str, Tensor], *, sparsity: float, done: float, rate: float
    ) -> None:
        """See :class:`~compress.train.masks.base.Masks`."""
        for weight in weights.values():
            sigma = (self.width * cut(weight, sparsity)).clamp(min=torch.finfo(torch.float32).tiny)
            weight.mul_(1 - self.strength * torch.exp(-0.5 * (weight / sigma).square()))
