"""Attention of a prompt by the C++ kernel against float64, and what is left to torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compress_kernels import native
from compress_kernels import prompt_attention as module
from compress_kernels.prompt_attention import prompt_attention
from torch.nn.functional import scaled_dot_product_attention as attend

needs_kernel = pytest.mark.skipif(not native.attends_prompts(), reason="no AVX-512, or AMX")


def drawn(batch: int, heads: int, groups: int, length: int, width: int, wide: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(batch, length, heads, width, generator=generator).bfloat16().transpose(1, 2)
    key = torch.randn(batch, groups, length, width, generator=generator).bfloat16()
    return [query, key, torch.randn(batch, groups, length, wide, generator=generator).bfloat16()]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the kernel was asked, of every call under the mode."""
    found: list[bool] = []
    fits = module._fits

    def counted(*args: Any, **kwargs: Any) -> bool:
        found.append(fits(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(module, "_fits", counted)
    return found


@needs_kernel
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "shape", [(2, 6, 2, 70, 64, 64), (1, 4, 4, 33, 80, 48), (3, 2, 1, 1, 16, 34), (1, 2, 2, 300, 128, 128)]
)
def test_against_float64(shape: tuple[int, ...], causal: bool, calls: list[bool]) -> None:
    query, key, value = drawn(*shape)
    with torch.no_grad(), prompt_attention():
        found = attend(query, key, value, is_causal=causal, enable_gqa=True)
        scaled = attend(query, key, value, is_causal=causal, scale=0.3, enable_gqa=True)
    assert calls == [True, True]
    assert found.shape == (*query.shape[:3], value.shape[3])
    wide = [tensor.double() for tensor in (query, key, value)]
    for result, scale in ((found, None), (scaled, 0.3)):
        wanted = attend(*wide, is_causal=causal, scale=scale, enable_gqa=True)
        torch.testing.assert_close(result.double(), wanted, rtol=2e-2, atol=2e-2)
        assert float((result - wanted).norm() / wanted.norm()) < 4e-3


@needs_kernel
def test_large_scores_do_not_overflow() -> None:
    query, key, value = drawn(1, 2, 2, 40, 32, 32)
    with torch.no_grad(), prompt_attention():
        found = attend(query * 100, key * 100, value, is_causal=True)
    assert bool(torch.isfinite(found).all())
    torch.testing.assert_close(found[:, :, 0], value[:, :, 0])


OTHERS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "a mask": lambda q, k, v: attend(q, k, v, attn_mask=torch.ones(q.shape[2], q.shape[2]).tril().bool()),
    "fp32": lambda q, k, v: attend(q.float(), k.float(), v.float(), is_causal=True),
    "one query": lambda q, k, v: attend(q[:, :, -1:], k, v),
    "an odd width": lambda q, k, v: attend(q[..., :7], k[..., :7], v),
    "three dimensions": lambda q, k, v: attend(q[0], k[0], v[0], is_causal=True),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_the_kernel_does_not_compute_is_torchs(kind: str, calls: list[bool]) -> None:
    query, key, value = drawn(1, 2, 2, 20, 16, 16)
    with torch.no_grad():
        wanted = OTHERS[kind](query, key, value)
        with prompt_attention():
            assert torch.equal(OTHERS[kind](query, key, value), wanted)
    assert not any(calls)


def test_gradients_are_torchs(calls: list[bool]) -> None:
    query, key, value = drawn(1, 2, 2, 20, 16, 16)
    query.requires_grad_()
    with prompt_attention():
        attend(query, key, value, is_causal=True).sum().backward()
    assert query.grad is not None
    assert not any(calls)


def test_without_the_kernel_nothing_is_asked(calls: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "attends_prompts", lambda: False)
    query, key, value = drawn(1, 2, 2, 20, 16, 16)
    with torch.no_grad():
        wanted = attend(query, key, value, is_causal=True)
        with prompt_attention():
            assert torch.equal(attend(query, key, value, is_causal=True), wanted)
    assert calls == []
