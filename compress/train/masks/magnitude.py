"""``magnitude``: a dense training, cut once, and trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from compress.train.masks.base import ByMagnitude, Weights, check_settled


@dataclass(frozen=True)
class Magnitude(ByMagnitude):
    """Nothing moves before the cut: the null of all rules that prepare it."""

    settled: float = 0.75

    name: ClassVar[str] = "magnitude"

    def __post_init__(self) -> None:
        check_settled(self.settled)

    def after_step(
        self, weights: Weights, state: dict[str, Tensor], *, sparsity: float, done: float, rate: float
    ) -> None:
        """See :class:`~compress.train.masks.base.Masks`: nothing."""
