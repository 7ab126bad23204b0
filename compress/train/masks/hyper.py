"""``hyper``: all weights are drawn to 0, the small ones more and more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.train.masks.base import ByMagnitude, Weights, check_settled

INFLECTION = 0.6585
"""Where the third derivative of tanh is 0, as the paper's code has it."""


@dataclass(frozen=True)
class Hyper(ByMagnitude):
    """HyperSparse (ART, arXiv:2308.07163).

    Its gradient ``λ (Σ|w| / Σ tanh s|w|) s (1 − tanh² s|w|) sign w`` falls from the small weights to the large ones, with
    ``s = 0.6585 / |w|_κ`` at the magnitude of the cut; λ grows from ``weight`` by ``growth``. It is taken as a proximal step,
    which stops at 0: a subgradient would swing around it.
    """

    weight: float = 1e-3
    growth: float = 1e3
    settled: float = 0.75

    name: ClassVar[str] = "hyper"

    def __post_init__(self) -> None:
        check_settled(self.settled)
        if self.weight <= 0 or self.growth < 1:
            raise ValueError("weight is above 0, and growth at least 1")

    @torch.no_grad()
    def after_step(
        self, weights: Weights, state: dict[str, Tensor], *, sparsity: float, done: float, rate: float
    ) -> None:
        """See :class:`~compress.train.masks.base.Masks`."""
        strength = rate * self.weight * self.growth**done
        for weight in weights.values():
            size = weight.abs()
            weight.copy_(weight.sign() * (size - strength * pull(size, sparsity)).clamp(min=0))


def pull(size: Tensor, sparsity: float) -> Tensor:
    """The gradient at magnitudes ``[out, in]``, without λ."""
    place = min(size.numel(), max(1, round(sparsity * size.numel())))
    cut = size.flatten().kthvalue(place).values.clamp(min=torch.finfo(torch.float32).tiny)
    scale = INFLECTION / cut
    bent = torch.tanh(scale * size)
    return size.sum() / bent.sum().clamp(min=1e-30) * scale * (1 - bent.square())
