"""``js``: the Jensen-Shannon divergence, bounded and symmetric at ``share: 0.5``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.healing.losses.base import Positions
from compress.healing.losses.kl import divergence


@dataclass(frozen=True)
class JS:
    """``β KL(p ‖ m) + (1 − β) KL(q ‖ m)`` with ``m = β p + (1 − β) q`` (GKD, arXiv:2306.13649)."""

    share: float = 0.5
    weight: float = 1.0

    name: ClassVar[str] = "js"
    recordable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError("share is above 0 and below 1")

    def __call__(self, positions: Positions) -> Tensor:
        """See :class:`~compress.healing.losses.base.Loss`."""
        log_p, log_q = positions.log_p, positions.log_q
        middle = torch.logaddexp(log_p + math.log(self.share), log_q + math.log(1 - self.share))
        return self.share * divergence(log_p, middle) + (1 - self.share) * divergence(log_q, middle)
