"""``bd``: both directions of the Kullback-Leibler divergence, balanced by the entropies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.healing.losses.base import Positions, at_positive_temperature
from compress.healing.losses.kl import divergence


@dataclass(frozen=True)
class BD:
    """``T² (a KL(p ‖ q) + b KL(q ‖ p))`` by position (BD-KD, arXiv:2212.12965).

    Where the student's entropy is below the teacher's it is over-confident: a = ``balance``, b = 1; elsewhere a = 1, b =
    ``balance``. The abstract does not say how the balance adapts; this rule is ours. The sum is divided by 1 + ``balance``.
    """

    temperature: float = 1.0
    balance: float = 2.0
    weight: float = 1.0

    name: ClassVar[str] = "bd"

    def __post_init__(self) -> None:
        at_positive_temperature(self.temperature)

    def __call__(self, positions: Positions) -> Tensor:
        """See :class:`~compress.healing.losses.base.Loss`."""
        at = positions.at_temperature(self.temperature)
        over_confident = entropy(at.log_q.detach()) < entropy(at.log_p)
        forward, reverse = divergence(at.log_p, at.log_q), divergence(at.log_q, at.log_p)
        first = torch.where(over_confident, self.balance, 1.0)
        second = torch.where(over_confident, 1.0, self.balance)
        return self.temperature**2 * (first * forward + second * reverse) / (1 + self.balance)


def entropy(log_p: Tensor) -> Tensor:
    """``−Σ p log p`` ``[positions]``."""
    p = log_p.exp()
    return -torch.where(p > 0, p * log_p, 0).sum(-1)
