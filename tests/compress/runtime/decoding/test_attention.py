"""The attention of one query: what it refuses, and that transformers' own setting comes back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_kernels import native
from torch import nn
from transformers import AutoModelForCausalLM

from compress.runtime.decoding.attention import NAME, Unsupported, decode_attention, native_attention
from compress.runtime.decoding.cache import POSITION

Tiny = Callable[..., Path]
native.load()


def _inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 6, 1, 16, generator=generator)
    key, value = (torch.randn(1, 2, 32, 16, generator=generator) for _ in range(2))
    setattr(key, POSITION, torch.tensor([20]))
    return query, key, value


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (8, None), (None, 5.0)])
def test_against_plain_torch_in_float64(window: int | None, softcap: float | None) -> None:
    query, key, value = _inputs()
    result, _ = decode_attention(
        nn.Module(), query, key, value, None, 0.3, sliding_window=window, softcap=softcap
    )
    first = 0 if window is None else 21 - window
    wide = [each[:, :, first:21].double().repeat_interleave(3, 1) for each in (key, value)]
    scores = query.double() @ wide[0].mT * 0.3
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    wanted = (scores.softmax(-1) @ wide[1]).transpose(1, 2)
    torch.testing.assert_close(result.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("extra", [{"s_aux": torch.zeros(6)}, {"attention_mask": torch.zeros(1, 1, 1, 32)}])
def test_what_the_kernel_does_not_compute(extra: dict[str, Any]) -> None:
    query, key, value = _inputs()
    with pytest.raises(Unsupported):
        decode_attention(nn.Module(), query, key, value, **{"attention_mask": None, **extra})
    with pytest.raises(Unsupported):
        decode_attention(nn.Module(), query, key.clone(), value, None)


def test_the_setting_of_the_model_comes_back(tiny_model: Tiny) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    before = model.config._attn_implementation
    with native_attention(model):
        assert model.config._attn_implementation == NAME
    assert model.config._attn_implementation == before
