"""``alpha``: the larger of two alpha-divergences, with bounded importance weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.healing.losses.base import Positions


@dataclass(frozen=True)
class Alpha:
    """``max(D_α, α = −below, above)`` with ``D_α = Σ q ((p/q)^α − 1) / (α (α − 1))`` (AlphaNet, arXiv:2102.07954).

    The gradient is ``−Σ q min((p/q)^α, clip) / α · ∇ log q``: the ratio counts as a weight and is not differentiated. α = 1 is
    forward KL.
    """

    below: float = 1.0
    above: float = 1.0
    clip: float = 5.0
    weight: float = 1.0

    name: ClassVar[str] = "alpha"

    def __post_init__(self) -> None:
        if self.below <= 0 or self.above <= 0:
            raise ValueError("below and above are above 0")

    def __call__(self, positions: Positions) -> Tensor:
        """See :class:`~compress.healing.losses.base.Loss`."""
        log_ratio = (positions.log_p - positions.log_q).detach()
        q = positions.log_q.detach().exp()
        low, high = (self._one(alpha, log_ratio, q, positions.log_q) for alpha in (-self.below, self.above))
        return torch.where(low.detach() > high.detach(), low, high)

    def _one(self, alpha: float, log_ratio: Tensor, q: Tensor, log_q: Tensor) -> Tensor:
        ratio = (alpha * log_ratio).exp().clamp(max=self.clip)
        if alpha == 1:
            value = (q * ratio * log_ratio.clamp(min=-100.0)).sum(-1)
        else:
            value = (q * (ratio - 1)).sum(-1) / (alpha * (alpha - 1))
        surrogate = -(q * ratio * log_q).sum(-1) / alpha
        return surrogate + (value - surrogate).detach()
