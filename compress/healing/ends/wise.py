"""``wise``: a point between the start and the best iterate, judged on the held-out text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compress.healing.ends.best import Judge, Values


@dataclass(frozen=True)
class WiSE:
    """``(1 − a) start + a best`` for a in ``shares`` (WiSE-FT, arXiv:2109.01903); a = 1 is among the candidates."""

    shares: tuple[float, ...] = (0.25, 0.5, 0.75)

    name: ClassVar[str] = "wise"

    def choose(self, start: Values, best: Values, best_kl: float, judge: Judge) -> tuple[Values, float]:
        """See :class:`~compress.healing.ends.best.Best`."""
        kept, kl = best, best_kl
        for share in self.shares:
            between = {name: value.lerp(best[name], share) for name, value in start.items()}
            found = judge(between)
            if found < kl:
                kept, kl = between, found
        return kept, kl
