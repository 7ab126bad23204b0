"""``cosine``: a warm-up, then half a cosine to zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Cosine:
    """``½ (1 + cos π t)`` (SGDR, arXiv:1608.03983, without restarts), behind a linear warm-up over a share of the steps."""

    warmup: float = 0.05

    name: ClassVar[str] = "cosine"

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError("warmup is a share of the steps from 0 to below 1")

    def factor(self, step: int, steps: int) -> float:
        """The learning rate of ``step`` (from 0) as a share of the largest."""
        warm = self.warmup * steps
        if step + 1 < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, step - warm) / max(steps - warm, 1.0))))
