"""The attention of one query over a cache of fixed capacity, as an attention function of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .cache import POSITION

NAME = "compress_decode"
_IGNORED = ("position_ids", "cache_position", "use_cache", "output_attentions", "is_causal")
"""Arguments that change nothing for one query."""


class Unsupported(ValueError):
    """The model's attention has something that the kernel does not compute."""


def decode_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Softmax attention of ``query`` ``[batch, heads, 1, width]``; the position stands on ``key`` itself.

    Raises:
        Unsupported: a mask, sinks, biases or keys that did not come from the cache.
    """
    position = getattr(key, POSITION, None)
    others = [name for name, held in kwargs.items() if held is not None and name not in _IGNORED]
    if position is None or attention_mask is not None or others:
        raise Unsupported(f"attention with {', '.join(others) or 'a mask or keys of its own'}")
    if getattr(module, "is_sliding", False) and not sliding_window:
        raise Unsupported("attention in chunks")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    result = torch.ops.compress_kernels.native_attention(
        query, key, value, position, scale, sliding_window or 0, softcap or 0.0
    )
    return result, None


@contextmanager
def native_attention(model: PreTrainedModel) -> Iterator[None]:
    """Use :func:`decode_attention` in ``model`` meanwhile. No masks are made for it: transformers knows none by its name."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, decode_attention)
    configs = {
        id(config): config for module in model.modules() if (config := getattr(module, "config", None))
    }
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = NAME
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]
