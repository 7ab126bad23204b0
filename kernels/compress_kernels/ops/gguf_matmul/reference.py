"""``x Wᵀ`` by writing W out and multiplying."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...layouts import GGUFBlocks
from ..epilogue import finish


@torch.library.custom_op("compress_kernels::gguf_reference", mutates_args=())
def gguf_reference(
    x: Tensor,
    packed: Tensor,
    type: str,
    columns: int,
    bias: Tensor | None,
    residual: Tensor | None,
    out: torch.dtype,
) -> Tensor:
    """The dense weight in the dtype of ``x``, then one product in that dtype."""
    weight = GGUFBlocks(type).decode({"weight": packed}, (packed.shape[0], columns), x.dtype)
    return finish(F.linear(x, weight), bias, residual, out)


@gguf_reference.register_fake
def _(
    x: Tensor,
    packed: Tensor,
    type: str,
    columns: int,
    bias: Tensor | None,
    residual: Tensor | None,
    out: torch.dtype,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], packed.shape[0]), dtype=out)
