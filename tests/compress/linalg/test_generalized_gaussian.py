from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from compress.linalg.generalized_gaussian import code_bits, exponent, scale_of


@pytest.mark.parametrize("nu", [0.7, 1.0, 2.0, 4.0])
def test_a_drawn_profile_is_found(nu: float) -> None:
    values = torch.tensor(stats.gennorm.rvs(nu, scale=3.0, size=200_000, random_state=0))
    assert exponent(values) == pytest.approx(nu, rel=0.05)
    assert scale_of(values, nu) == pytest.approx(3.0, rel=0.03)


def test_bits_are_those_of_a_distribution_and_least_in_the_middle() -> None:
    codes = (torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 2 + 7.5).round().clamp(0, 15)
    bits = code_bits(codes, 15)
    assert float((-bits.double() * math.log(2)).exp().sum()) == pytest.approx(1.0)
    assert int(bits.argmin()) in (7, 8)
    share = torch.bincount(codes.long(), minlength=16).double() / len(codes)
    entropy = float(-(share * share.clamp_min(1e-300).log2()).sum())
    assert float((share * bits).sum()) == pytest.approx(entropy, rel=0.01)


def test_codes_that_are_all_the_same() -> None:
    bits = code_bits(torch.full((8,), 3), 7)
    assert bool(torch.isfinite(bits).all())
    assert int(bits.argmin()) == 3
