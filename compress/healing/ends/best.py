"""``best``: the iterate with the least held-out KL, the start among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

Values = Mapping[str, Tensor]
Judge = Callable[[Values], float]


@dataclass(frozen=True)
class Best:
    """Quantized iterates come back to good points and leave them again, so that the last is not the best one (Long et al.,
    arXiv:2012.05529)."""

    name: ClassVar[str] = "best"

    def choose(self, start: Values, best: Values, best_kl: float, judge: Judge) -> tuple[Values, float]:
        """The masters that are kept and their held-out KL.

        Args:
            start: masters before training.
            best: those of the iterate with the least held-out KL.
            best_kl: that KL.
            judge: measures the held-out KL of other masters.
        """
        return best, best_kl
