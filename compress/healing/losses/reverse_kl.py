"""``reverse-kl``: the Kullback-Leibler divergence to the teacher, which seeks a mode of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from compress.healing.losses.base import Positions, at_positive_temperature
from compress.healing.losses.kl import divergence


@dataclass(frozen=True)
class ReverseKL:
    """``T² · Σ q (log q − log p)`` at temperature T (MiniLLM, arXiv:2306.08543, over positions of a text)."""

    temperature: float = 1.0
    weight: float = 1.0

    name: ClassVar[str] = "reverse-kl"
    recordable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_positive_temperature(self.temperature)

    def __call__(self, positions: Positions) -> Tensor:
        """See :class:`~compress.healing.losses.base.Loss`."""
        at = positions.at_temperature(self.temperature)
        return self.temperature**2 * divergence(at.log_q, at.log_p)
