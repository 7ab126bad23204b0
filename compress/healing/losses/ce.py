"""``ce``: cross entropy of the text itself, the loss of language modelling; no teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from compress.healing.losses.base import Positions, of_following


@dataclass(frozen=True)
class CE:
    """``−log q(following token)``; 0 at the end of a window."""

    weight: float = 1.0

    name: ClassVar[str] = "ce"

    def __call__(self, positions: Positions) -> Tensor:
        """See :class:`~compress.healing.losses.base.Loss`."""
        return -of_following(positions.log_q, positions.following)
