"""``linear``: a warm-up, then a straight line to zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Linear:
    """Linear decay, the best schedule in the worst case (Defazio et al., arXiv:2310.07831), behind a linear warm-up over a
    share ``warmup`` of the steps."""

    warmup: float = 0.05

    name: ClassVar[str] = "linear"

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError("warmup is a share of the steps from 0 to below 1")

    def factor(self, step: int, steps: int) -> float:
        """The learning rate of ``step`` (from 0) as a share of the largest."""
        warm = self.warmup * steps
        rising = (step + 1) / warm if warm > 0 else 1.0
        return min(rising, (steps - step) / max(steps - warm, 1.0), 1.0)
