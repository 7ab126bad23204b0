"""``lion``: steps of one size in the sign of a momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lion:
    """Algorithm 2 of Chen et al., arXiv:2302.06675; half the state of AdamW."""

    beta1: float = 0.9
    beta2: float = 0.99
    decay: float = 0.0

    name: ClassVar[str] = "lion"

    def __post_init__(self) -> None:
        if not (self.beta1 <= 1 and self.beta2 < 1):
            raise ValueError("beta1 is up to 1 and beta2 below 1")

    def begin(self, master: Tensor) -> dict[str, Tensor]:
        """The momentum."""
        return {"mean": torch.zeros_like(master)}

    def step(
        self, master: Tensor, gradient: Tensor, state: dict[str, Tensor], *, rate: Tensor, count: int | Tensor
    ) -> None:
        """See :class:`~compress.healing.optimizers.base.Optimizer`."""
        direction = torch.lerp(state["mean"], gradient, 1 - self.beta1).sign_()
        if self.decay:
            master.sub_(rate * self.decay * master)
        master.sub_(rate * direction)
        state["mean"].lerp_(gradient, 1 - self.beta2)
