"""``kl``: the Kullback-Leibler divergence from the teacher (forward KL), the loss of knowledge distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.healing.losses.base import Positions, at_positive_temperature


@dataclass(frozen=True)
class KL:
    """``T² · Σ p (log p − log q)`` at temperature T (Hinton et al., arXiv:1503.02531, section 2)."""

    temperature: float = 1.0
    weight: float = 1.0

    name: ClassVar[str] = "kl"

    def __post_init__(self) -> None:
        at_positive_temperature(self.temperature)

    def __call__(self, positions: Positions) -> Tensor:
        """See :class:`~compress.healing.losses.base.Loss`."""
        at = positions.at_temperature(self.temperature)
        return self.temperature**2 * divergence(at.log_p, at.log_q)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``KL(p ‖ q)`` ``[positions]``; where p is 0 nothing is added."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0).sum(-1)
