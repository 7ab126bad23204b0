"""``correct``: only positions whose following token the teacher predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from compress.healing.losses.base import Positions


@dataclass(frozen=True)
class Correct:
    """1 where the teacher's most likely token is the text's, else ``others`` (self-distillation on correct instances, MDCS,
    arXiv:2308.09922)."""

    others: float = 0.0

    name: ClassVar[str] = "correct"

    def __call__(self, positions: Positions, loss: Tensor) -> Tensor:
        """See :class:`~compress.healing.filters.base.Filter`."""
        right = positions.teacher.argmax(-1) == positions.following
        return right.to(loss.dtype) * (1 - self.others) + self.others
