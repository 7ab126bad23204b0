"""``groups``: whole rows shrink, those of the least length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.train.masks.base import Weights, check_settled


@dataclass(frozen=True)
class Groups:
    """The rows of a weight (an output each) are groups; all but the k longest are divided by ``1 + strength`` in every step:
    the proximal step of ``strength/2 · Σ ‖w_g‖²`` over the groups outside the k longest.

    So a preset number of groups is kept at linear cost, as by the weighted group sparse envelope (WGSEF), whose weights are
    left out. At the end whole rows are 0: the neurons can be left out.
    """

    strength: float = 0.05
    settled: float = 0.75

    name: ClassVar[str] = "groups"

    def __post_init__(self) -> None:
        check_settled(self.settled)
        if self.strength <= 0:
            raise ValueError("strength is above 0")

    def begin(self, weights: Weights, sparsity: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    @torch.no_grad()
    def after_step(
        self, weights: Weights, state: dict[str, Tensor], *, sparsity: float, done: float, rate: float
    ) -> None:
        """See :class:`~compress.train.masks.base.Masks`."""
        for weight in weights.values():
            weight.mul_(torch.where(longest(weight, sparsity), 1.0, 1 / (1 + self.strength)))

    def settle(self, weights: Weights, state: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """See :class:`~compress.train.masks.base.Masks`."""
        return {name: longest(weight, sparsity).expand_as(weight).clone() for name, weight in weights.items()}


def longest(weight: Tensor, sparsity: float) -> Tensor:
    """The mask, bool ``[out, 1]``, of the ``1 − sparsity`` of the rows with the largest lengths."""
    kept = weight.shape[0] - round(sparsity * weight.shape[0])
    order = weight.detach().norm(dim=1).argsort(descending=True, stable=True)
    mask = torch.zeros(weight.shape[0], dtype=torch.bool, device=weight.device)
    return mask.index_fill_(0, order[:kept], True).unsqueeze(1)
