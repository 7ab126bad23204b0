"""The norm and the attention of a decoding step, in every instruction set, against float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from compress_kernels import native

CLOSE = {torch.float32: {"rtol": 1e-5, "atol": 1e-6}, torch.bfloat16: {"rtol": 1.6e-2, "atol": 1e-2}}


@pytest.fixture(params=native.available())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with native.using(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "width"), [(1, 5), (2, 16), (3, 83), (1, 576)])
def test_rms_norm(rows: int, width: int, dtype: torch.dtype, isa: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((rows, width), (width,)))
    for offset in (0.0, 1.0):
        for held in (weight, None):
            result = torch.ops.compress_kernels.native_rms_norm(x, held, 1e-3, offset, False)
            wide = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-3).sqrt()
            wanted = wide * (held.double() + offset) if held is not None else wide
            torch.testing.assert_close(result.double(), wanted, **CLOSE[dtype])


def test_rms_norm_rounds_before_the_weight_where_asked(isa: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(64, generator=generator).bfloat16() for _ in range(2))
    result = torch.ops.compress_kernels.native_rms_norm(x, weight, 1e-5, 0.0, True)
    rounded = (x.float() * torch.rsqrt(x.float().pow(2).mean() + 1e-5)).bfloat16()
    assert torch.equal(result, rounded * weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "value_width"), [(4, 4, 8, 8), (6, 2, 40, 24), (9, 3, 64, 64)]
)
@pytest.mark.parametrize(
    ("position", "window", "softcap"), [(0, 0, 0.0), (50, 0, 0.0), (50, 7, 0.0), (63, 0, 3.0)]
)
def test_attention(
    heads: int,
    kv_heads: int,
    width: int,
    value_width: int,
    position: int,
    window: int,
    softcap: float,
    dtype: torch.dtype,
    isa: str,
) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, heads, 1, width, generator=generator).to(dtype)
    keys = torch.randn(2, kv_heads, 64, width, generator=generator).to(dtype)
    values = torch.randn(2, kv_heads, 64, value_width, generator=generator).to(dtype)
    result = torch.ops.compress_kernels.native_attention(
        query, keys, values, torch.tensor([position]), 0.2, window, softcap
    )
    seen = slice(max(0, position + 1 - window) if window else 0, position + 1)
    group = heads // kv_heads
    k, v = (each[:, :, seen].double().repeat_interleave(group, 1) for each in (keys, values))
    scores = query.double() @ k.mT * 0.2
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    torch.testing.assert_close(result.double(), (scores.softmax(-1) @ v).transpose(1, 2), **CLOSE[dtype])


def test_what_does_not_fit_is_refused() -> None:
    native.load()
    query, cache = torch.zeros(1, 4, 1, 8), torch.zeros(1, 2, 16, 8)
    attend = torch.ops.compress_kernels.native_attention
    with pytest.raises(ValueError, match="outside the cache"):
        attend(query, cache, cache, torch.tensor([16]), 1.0, 0, 0.0)
    with pytest.raises(ValueError, match="do not fit"):
        attend(query, torch.zeros(1, 3, 16, 8), torch.zeros(1, 3, 16, 8), torch.tensor([1]), 1.0, 0, 0.0)
    with pytest.raises(ValueError, match="one dtype"):
        attend(query.bfloat16(), cache, cache, torch.tensor([1]), 1.0, 0, 0.0)
    with pytest.raises(ValueError, match="dtype and the width"):
        torch.ops.compress_kernels.native_rms_norm(torch.zeros(2, 8), torch.ones(7), 1e-5, 0.0, True)
    with pytest.raises(ValueError, match="float32 and bfloat16"):
        torch.ops.compress_kernels.native_rms_norm(torch.zeros(2, 8).half(), None, 1e-5, 0.0, True)
