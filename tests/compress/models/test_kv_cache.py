"""Modules that store keys and values, found without knowing families, and a cache that changes them as they are stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from compress.checkpoint.source import open_source
from compress.models.kv_cache import cached_attention, store_through
from compress.models.skeleton import open_skeleton

TOKENS = torch.arange(2, 26).view(2, 12) * 7 % 256


@pytest.mark.parametrize(
    ("family", "module", "heads", "named"),
    [
        ("llama", "self_attn", 2, True),
        ("gemma3", "self_attn", 2, True),
        ("phi3", "self_attn", 2, True),
        ("gpt2", "attn", 4, False),
        ("opt", "self_attn", 4, True),
        ("gpt_neox", "attention", 4, False),
        ("mixtral", "self_attn", 2, True),
        ("gpt_oss", "self_attn", 2, True),
    ],
)
def test_attention_is_found(
    family: str, module: str, heads: int, named: bool, tiny_model: Callable[..., Path]
) -> None:
    skeleton = open_skeleton(open_source(tiny_model(family)))
    for index, block in enumerate(skeleton.blocks):
        (one,) = cached_attention(skeleton, index)
        assert (one.module, one.heads, one.named_attention) == (f"{block}.{module}", heads, named)
        assert any(name.startswith(f"{one.disk}.") for name in skeleton.source.headers)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gpt_oss"])
def test_what_is_stored_is_attended_to(family: str, tiny_model: Callable[..., Path]) -> None:
    """Values times two at every store is a model whose values are twice as large, with a cache and without one."""
    folder = tiny_model(family)
    skeleton = open_skeleton(open_source(folder))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    calls: list[tuple[torch.Size, torch.Size]] = []

    def doubled(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        calls.append((keys.shape, values.shape))
        return keys, 2 * values

    with torch.no_grad():
        plain = model(TOKENS, use_cache=False).logits
        handles = [
            store_through(model.get_submodule(one.module), doubled)
            for index in range(len(skeleton.blocks))
            for one in cached_attention(skeleton, index)
        ]
        without = model(TOKENS, use_cache=False).logits
        cache = DynamicCache(config=model.config)
        filled = model(TOKENS, past_key_values=cache, use_cache=True).logits
        for handle in handles:
            handle.remove()
        assert torch.equal(model(TOKENS, use_cache=False).logits, plain)
    assert torch.allclose(without, filled, atol=1e-5)
    assert not torch.allclose(without, plain, atol=1e-3)
    assert len(calls) == 2 * len(handles)
    assert cache.get_seq_length() == TOKENS.shape[1]


def test_a_module_without_a_cache_is_refused() -> None:
    with pytest.raises(ValueError, match="takes no key-value cache"):
        store_through(torch.nn.Linear(2, 2), lambda keys, values: (keys, values))
