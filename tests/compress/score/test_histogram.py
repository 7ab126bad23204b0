"""The histogram of inputs against numpy-like counting in one go, whatever the order of the data."""

from __future__ import annotations

import math

import torch

from compress.score.histogram import BINS, Histogram


def of(*parts: torch.Tensor) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def test_counts_are_those_of_one_pass_over_the_final_range() -> None:
    small = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    large = 50 * torch.randn(700, generator=torch.Generator().manual_seed(1))
    found = of(small, large)
    everything = torch.cat([small.flatten(), large])
    expected = torch.histc(everything, BINS, -found.limit, found.limit).long()
    assert found.limit == 2.0 ** math.ceil(math.log2(float(everything.abs().max())))
    assert found.total == everything.numel()
    # Values on an edge may be counted on either side of it.
    assert int((found.counts - expected).abs().sum()) <= 4
    assert (found.low, found.high) == (float(everything.min()), float(everything.max()))


def test_the_order_does_not_matter() -> None:
    parts = [scale * torch.randn(400, generator=torch.Generator().manual_seed(2)) for scale in (0.01, 1, 80)]
    first, second = of(*parts), of(*reversed(parts))
    assert first.limit == second.limit
    assert torch.equal(first.counts, second.counts)


def test_pooled_is_the_histogram_of_all() -> None:
    parts = [scale * torch.randn(400, generator=torch.Generator().manual_seed(3)) for scale in (1, 9)]
    pooled, together = Histogram.pooled([of(part) for part in parts]), of(*parts)
    assert torch.equal(pooled.counts, together.counts)
    assert (pooled.low, pooled.high, pooled.limit) == (together.low, together.high, together.limit)
    assert Histogram.pooled([]).total == 0


def test_a_value_that_is_not_finite_is_never_forgotten() -> None:
    for bad in (float("inf"), float("nan")):
        found = of(torch.tensor([bad]), torch.ones(3))
        assert math.isnan(found.low)
        assert math.isnan(found.high)
        assert math.isnan(Histogram.pooled([of(torch.ones(2)), found]).high)


def test_nothing_and_zeros() -> None:
    assert of(torch.empty(0)).total == 0
    zeros = of(torch.zeros(5))
    assert (zeros.total, zeros.low, zeros.high) == (5, 0.0, 0.0)
