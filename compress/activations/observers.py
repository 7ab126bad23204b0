"""Observers: the range that static scales span, chosen from a histogram of the calibration inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from compress_kernels.activations import ActivationScheme, centred_codes, scale_of_range

from compress.score.histogram import Histogram


class Observer(Protocol):
    """An observer: it chooses the range of a scheme's codes."""

    def range(self, histogram: Histogram, scheme: ActivationScheme) -> tuple[float, float]:
        """The lowest and the highest value that the codes reach; values beyond them are clipped.

        Args:
            histogram: of the inputs.
            scheme: how they will be rounded.
        """
        ...


@dataclass(frozen=True)
class MinMax:
    """Min-max: the extremes of the calibration inputs; none of these is clipped."""

    def range(self, histogram: Histogram, scheme: ActivationScheme) -> tuple[float, float]:
        """The extremes."""
        return histogram.low, histogram.high


@dataclass(frozen=True)
class Percentile:
    """Percentile: the range that holds a share of the inputs; for a symmetric scheme, of their magnitudes.

    Attributes:
        percentile: the share, in per cent. For a range with a zero point half of the rest is left out at each end.
    """

    percentile: float = 99.99

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise ValueError(f"a percentile is above 50 and at most 100, not {self.percentile}")

    def range(self, histogram: Histogram, scheme: ActivationScheme) -> tuple[float, float]:
        """The edges of the bins where the share is reached, within the extremes."""
        share = self.percentile / 100
        if scheme.symmetric:
            half = len(histogram.counts) // 2
            sizes = histogram.counts[half:] + histogram.counts[:half].flip(0)
            reached = _edge(sizes, share) * histogram.limit
            return max(histogram.low, -reached), min(histogram.high, reached)
        outside = (1 - share) / 2
        high = 2 * _edge(histogram.counts, 1 - outside) * histogram.limit - histogram.limit
        low = histogram.limit - 2 * _edge(histogram.counts.flip(0), 1 - outside) * histogram.limit
        return max(histogram.low, low), min(histogram.high, high)


@dataclass(frozen=True)
class MSE:
    """MSE: the shrunken range of least mean squared error after rounding, over the histogram's bins.

    Attributes:
        points: number of ratios of the extremes that are tried, from ``smallest`` to 1.
        smallest: the smallest ratio.
    """

    points: int = 80
    smallest: float = 0.2

    def __post_init__(self) -> None:
        if self.points < 1 or not 0 < self.smallest <= 1:
            raise ValueError("points is at least 1, and smallest is above 0 and at most 1")

    def range(self, histogram: Histogram, scheme: ActivationScheme) -> tuple[float, float]:
        """The extremes times the ratio of least error."""
        filled = histogram.counts > 0
        values, weights = histogram.centres()[filled].double(), histogram.counts[filled].double()
        best, least = 1.0, float("inf")
        for ratio in torch.linspace(1.0, self.smallest, self.points).tolist():
            low, high = torch.tensor([histogram.low * ratio]), torch.tensor([histogram.high * ratio])
            scale, zero = scale_of_range(scheme, low, high)
            rounded = centred_codes(values.float(), scheme, scale, zero).double() * scale.double()
            error = float(((rounded - values).square() * weights).sum())
            if error < least:
                best, least = ratio, error
        return histogram.low * best, histogram.high * best


def _edge(counts: torch.Tensor, share: float) -> float:
    """The upper edge of the bin in which ``share`` of all counts is reached, as a fraction of all bins."""
    running = counts.double().cumsum(0)
    reached = int(torch.searchsorted(running, share * running[-1]))
    return (min(reached, len(counts) - 1) + 1) / len(counts)
