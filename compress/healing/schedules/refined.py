"""``refined``: the schedule that an earlier training's gradient norms make the best one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Refined:
    """``η_t ∝ w_t Σ_{s>t} w_s`` with ``w = 1 / ‖g‖²`` (Defazio et al., arXiv:2310.07831).

    ``norms`` are gradient norms of an earlier training over equal parts of its steps, as ``healing.points`` of its
    ``compress.json`` lists them. Where all are equal it is linear decay. The first step of a part has the part's rate.
    """

    norms: tuple[float, ...]

    name: ClassVar[str] = "refined"

    def __post_init__(self) -> None:
        if min(self.norms) <= 0:
            raise ValueError("gradient norms are above 0")

    def factor(self, step: int, steps: int) -> float:
        """The learning rate of ``step`` (from 0) as a share of the largest."""
        weights = [norm**-2 for norm in self.norms]
        parts = len(weights)
        rates = [w * (w / 2 + sum(weights[place + 1 :])) for place, w in enumerate(weights)]
        return rates[min(parts - 1, step * parts // steps)] / max(rates)
