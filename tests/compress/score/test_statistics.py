"""Moments against float64, over several strips of a Gram matrix and in the dtypes that inputs come in."""

from __future__ import annotations

import pytest
import torch

from compress.calibrate.accumulate import Accumulator


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("features", [3, 256, 700])
def test_gram_against_float64(dtype: torch.dtype, features: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, features, generator=generator).add_(0.5).to(dtype)
    first, second = (Accumulator(frozenset({"gram", "diagonal", "mean"}), features) for _ in range(2))
    first.add(x[:200].view(2, 100, features))
    second.add(x[200:])
    first.merge(second)
    found = first.finish()
    exact = x.double()
    assert found.tokens == 500
    assert found.gram is not None
    assert found.diagonal is not None
    assert found.mean is not None
    torch.testing.assert_close(found.gram.double(), exact.T @ exact / 500, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.diagonal.double(), exact.square().mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.mean.double(), exact.mean(0), rtol=1e-5, atol=1e-5)
    assert torch.equal(found.gram, found.gram.T)


def test_the_precision_of_other_products_is_left_alone() -> None:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    before = x @ x
    Accumulator(frozenset({"gram"}), 64).add(x.bfloat16())
    assert torch.equal(x @ x, before)
