"""Histogram of a layer's inputs: counts over a range that grows as data goes by, and the exact extremes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

BINS = 4096
"""Even, so that two bins become one where the range doubles."""


@dataclass
class Histogram:
    """Counts of values in ``BINS`` equal bins over ``[-limit, limit]``, with the exact extremes.

    The limit is a power of two. Where a value lies beyond it, it doubles and neighbouring bins are merged: the result does not
    depend on the order of the data.

    Attributes:
        counts: int64 ``[BINS]``.
        limit: of the range; 0 before any value was seen.
        low, high: the extremes; NaN once a value was not finite.
    """

    counts: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.int64))
    limit: float = 0.0
    low: float = 0.0
    high: float = 0.0

    @property
    def total(self) -> int:
        """How many values were seen."""
        return int(self.counts.sum())

    def add(self, values: Tensor) -> None:
        """Count values of any shape."""
        if not values.numel() or math.isnan(self.low):
            return
        low, high = (float(extreme) for extreme in values.detach().float().aminmax())
        seen = self.total > 0
        self.low, self.high = (min(self.low, low), max(self.high, high)) if seen else (low, high)
        if not (math.isfinite(low) and math.isfinite(high)):
            self.low = self.high = float("nan")
            return
        self._reach(max(-low, high))
        width = 2 * self.limit / BINS
        places = ((values.detach().float().flatten() + self.limit) / width).long().clamp_(0, BINS - 1)
        self.counts += torch.bincount(places, minlength=BINS).cpu()

    def centres(self) -> Tensor:
        """The middle of each bin, fp32 ``[BINS]``."""
        width = 2 * self.limit / BINS
        return (torch.arange(BINS, dtype=torch.float32) + 0.5) * width - self.limit

    @classmethod
    def pooled(cls, several: Sequence[Histogram]) -> Histogram:
        """The histogram of the values of all."""
        seen = [one for one in several if one.limit or math.isnan(one.low)]
        if not seen:
            return cls()
        result = cls(limit=max(one.limit for one in seen))
        result.low, result.high = min(one.low for one in seen), max(one.high for one in seen)
        if any(math.isnan(one.low) for one in seen):
            result.low = result.high = float("nan")
        for one in seen:
            widened = cls(one.counts.clone(), one.limit, one.low, one.high)
            widened._reach(result.limit)
            result.counts += widened.counts
        return result

    def _reach(self, largest: float) -> None:
        """Widen the range until it holds ``largest``."""
        if not self.limit:
            self.limit = 2.0**-24
            if not self.total:
                while self.limit < largest:
                    self.limit *= 2
                return
        while self.limit < largest:
            pairs = self.counts.view(-1, 2).sum(1)
            self.counts = torch.cat(
                [torch.zeros_like(pairs[: BINS // 4]), pairs, torch.zeros_like(pairs[: BINS // 4])]
            )
            self.limit *= 2
