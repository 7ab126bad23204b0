"""Softmax attention of a whole prompt by the C++ kernel, wherever a model asks torch for it.

torch's own kernel for bf16 on a CPU takes five times as long, or up to twice where the CPU has no instructions for bf16. The
sums are the same: scores and outputs in fp32, what multiplies the values rounded to bf16.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from . import native

_KNOWN = frozenset({"attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"})


@contextmanager
def prompt_attention() -> Iterator[None]:
    """``torch.nn.functional.scaled_dot_product_attention`` is computed by the kernel meanwhile, where it can.

    It can on a CPU with AVX-512 and without matrix tiles (AMX; there torch uses them), for bf16, without a mask of its own,
    without dropout, where queries and keys are those of the same tokens, and where no gradient is asked for. All else
    is torch's.
    """
    if not native.attends_prompts():
        yield
        return
    with _PromptAttention():
        yield


class _PromptAttention(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention and len(args) == 3 and _fits(*args, **kwargs):
            query, key, value = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in args)
            scale = kwargs.get("scale") or query.shape[-1] ** -0.5
            causal = bool(kwargs.get("is_causal"))
            return torch.ops.compress_kernels.native_prompt_attention(query, key, value, scale, causal)
        return func(*args, **kwargs)


def _fits(query: Tensor, key: Tensor, value: Tensor, **said: Any) -> bool:
    """Whether the kernel computes what was asked for."""
    tensors = (query, key, value)
    return (
        said.keys() <= _KNOWN
        and said.get("attn_mask") is None
        and not said.get("dropout_p")
        and (said.get("scale") is None or said["scale"] > 0)
        and all(t.dtype == torch.bfloat16 and t.device.type == "cpu" and t.dim() == 4 for t in tensors)
        and query.shape[2] == key.shape[2] == value.shape[2]
        and query.shape[0] == key.shape[0] == value.shape[0]
        and query.shape[3] == key.shape[3]
        and query.shape[3] % 2 == 0
        and key.shape[1] == value.shape[1]
        and (query.shape[1] == key.shape[1] or bool(said.get("enable_gqa")))
        and query.shape[1] % key.shape[1] == 0
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
    )
