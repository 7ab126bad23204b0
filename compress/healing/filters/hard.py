"""``hard``: only the positions with the largest losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.healing.losses.base import Positions


@dataclass(frozen=True)
class Hard:
    """1 for the ``share`` of the positions, among those handled together, whose loss is largest; 0 for the rest.

    FerKD mines hard regions of images in this way.
    """

    share: float = 0.5

    together: ClassVar[int] = 256
    """Positions that are compared, at least."""
    name: ClassVar[str] = "hard"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError("share is above 0 and up to 1")

    def __call__(self, positions: Positions, loss: Tensor) -> Tensor:
        """See :class:`~compress.healing.filters.base.Filter`."""
        count = max(1, round(self.share * len(loss)))
        return torch.zeros_like(loss).index_fill_(0, loss.topk(count).indices, 1.0)
