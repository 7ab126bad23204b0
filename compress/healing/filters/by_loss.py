"""``loss``: positions count by their loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.healing.losses.base import Positions


@dataclass(frozen=True)
class ByLoss:
    """``n · softmax(loss / sharpness)`` over the n positions handled together, each at most ``most`` (online reweighting by the
    loss, arXiv:2502.06733, which brings down what is redundant)."""

    sharpness: float = 1.0
    most: float = 10.0

    together: ClassVar[int] = 256
    """Positions that are compared, at least."""
    name: ClassVar[str] = "loss"

    def __post_init__(self) -> None:
        if self.sharpness <= 0:
            raise ValueError("sharpness is above 0")

    def __call__(self, positions: Positions, loss: Tensor) -> Tensor:
        """See :class:`~compress.healing.filters.base.Filter`."""
        return (len(loss) * torch.softmax(loss / self.sharpness, 0)).clamp(max=self.most)
