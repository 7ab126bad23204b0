"""Axes: from a value to a place between 0 and 100, and the ticks to print."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic axis over `[low, high]`, both positive for a logarithmic one."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """0 at `low`, 100 at `high`; held inside."""
        low, high, at = (math.log(v) for v in (self.low, self.high, max(value, self.low))) if self.log else (
            self.low, self.high, value,
        )  # fmt: skip
        share = (at - low) / (high - low) if high > low else 0.5
        return 100 * min(max(share, 0.0), 1.0)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values inside the axis, at most `most` of them."""
        return _log_ticks(self.low, self.high, most) if self.log else _linear_ticks(self.low, self.high, most)


def log_scale(values: Iterable[float], pad: float = 1.25) -> Scale | None:
    """An axis around the positive, finite values, `pad` times wider at both ends; None if there are none."""
    usable = [value for value in values if value > 0 and math.isfinite(value)]
    if not usable:
        return None
    low, high = min(usable), max(usable)
    if high / low < 2:
        middle = math.sqrt(low * high)
        low, high = middle / math.sqrt(2), middle * math.sqrt(2)
    return Scale(low / pad, high * pad, log=True)


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    if not high > low:
        return [low]
    power = 10.0 ** (math.floor(math.log10((high - low) / most)) - 1)
    steps = [unit * power * scale for scale in (1, 10, 100) for unit in (1, 2, 2.5, 5)]
    inside = [(step, math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)) for step in steps]
    step, first, last = next(places for places in inside if places[2] - places[1] < most)
    return [index * step for index in range(first, last + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for units in ((1, 2, 5), (1, 3), (1,)):
        ticks = [unit * 10.0**power for power in range(first, last + 1) for unit in units]
        inside = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
        if len(inside) <= most:
            return inside
    return inside[:: math.ceil(len(inside) / most)]
