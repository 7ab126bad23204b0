"""``rewind``: a dense training finds the mask, and the first weights are trained on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.train.masks.base import Weights, check_settled, largest


@dataclass(frozen=True)
class Rewind:
    """The lottery ticket (Frankle and Carbin, arXiv:1803.03635) in one round: the largest weights of a dense training go
    back to their values after ``back`` of its steps (0: the random ones; arXiv:1912.05671 for later ones) and are trained on.
    """

    back: float = 0.0
    settled: float = 0.5

    name: ClassVar[str] = "rewind"

    def __post_init__(self) -> None:
        check_settled(self.settled)
        if not 0 <= self.back < 1:
            raise ValueError("back is a share from 0 to below 1")

    def begin(self, weights: Weights, sparsity: float, generator: torch.Generator) -> dict[str, Tensor]:
        """The weights to go back to."""
        return {name: weight.detach().clone() for name, weight in weights.items()}

    def after_step(
        self, weights: Weights, state: dict[str, Tensor], *, sparsity: float, done: float, rate: float
    ) -> None:
        """See :class:`~compress.train.masks.base.Masks`."""
        if done <= self.back:
            state.update(self.begin(weights, sparsity, torch.Generator()))

    @torch.no_grad()
    def settle(self, weights: Weights, state: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """See :class:`~compress.train.masks.base.Masks`."""
        masks = {name: largest(weight, sparsity) for name, weight in weights.items()}
        for name, weight in weights.items():
            weight.copy_(state[name])
        return masks
