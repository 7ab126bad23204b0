"""``lq``: a penalty of the power q below 1, which leaves large weights as they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.train.masks.base import ByMagnitude, Weights, check_settled


@dataclass(frozen=True)
class LQ(ByMagnitude):
    """The proximal step of ``λ Σ|w|^½`` (half thresholding, Xu et al., IEEE TNNLS 2012), which shrinks less than that of ℓ1
    the larger a weight is.

    λ grows with the training: it puts the threshold at ``reach`` of the magnitude of the cut at the end, and at 0 in the
    beginning. What is put to 0 may come back.
    """

    reach: float = 1.0
    settled: float = 0.75

    name: ClassVar[str] = "lq"

    def __post_init__(self) -> None:
        check_settled(self.settled)
        if self.reach <= 0:
            raise ValueError("reach is above 0")

    @torch.no_grad()
    def after_step(
        self, weights: Weights, state: dict[str, Tensor], *, sparsity: float, done: float, rate: float
    ) -> None:
        """See :class:`~compress.train.masks.base.Masks`."""
        for weight in weights.values():
            weight.copy_(half_thresholded(weight, self.reach * done * cut(weight, sparsity)))


def cut(weight: Tensor, sparsity: float) -> Tensor:
    """The magnitude below which the share ``sparsity`` of a weight lies; 0 where that is none."""
    place = round(sparsity * weight.numel())
    return weight.abs().flatten().kthvalue(place).values if place else weight.new_zeros(())


def half_thresholded(weight: Tensor, threshold: Tensor) -> Tensor:
    """``argmin_x (x − w)² + λ|x|^½`` with the λ whose threshold ``54^(1/3) / 4 · λ^(2/3)`` is the one that is given."""
    weight_of = (4 * threshold / 54 ** (1 / 3)).clamp(min=0).pow(1.5)
    size = weight.abs()
    angle = torch.acos((weight_of / 8 * (size.clamp(min=1e-30) / 3).pow(-1.5)).clamp(max=1.0))
    shrunk = 2 / 3 * size * (1 + torch.cos(2 * math.pi / 3 - 2 / 3 * angle))
    return torch.where(size > threshold, weight.sign() * shrunk, 0.0)
