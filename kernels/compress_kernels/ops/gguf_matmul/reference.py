"""``x Wᵀ`` by writing W out and multiplying."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...decode import Rows
from ...layouts import GGUFBlocks
from ..autograd import product
from ..epilogue import finish
from .operands import GGUFOperands


def _rows(packed: Tensor, type: str, columns: int, dtype: torch.dtype, rows: Rows) -> Tensor:
    part = packed[rows]
    return GGUFBlocks(type).decode({"weight_blocks": part}, (part.shape[0], columns), dtype)


@product("gguf_reference", _rows)
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
    weight = _rows(packed, type, columns, x.dtype, slice(0, packed.shape[0]))
    return finish(F.linear(x, weight), bias, residual, out)


def run(
    x: Tensor, o: GGUFOperands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    """``x Wᵀ`` by the reference, then bias and residual; :mod:`compress_kernels.ops.gguf_matmul` says of what."""
    return gguf_reference(x, o.packed, o.type, o.columns, bias, residual, out or x.dtype)


def gather(ids: Tensor, o: GGUFOperands, dtype: torch.dtype) -> Tensor:
    """The decoded rows of W at ``ids``, ``[…, in]``, in ``dtype``."""
    return torch.ops.compress_kernels.gguf_reference_gather(
        ids, o.packed, o.type, o.columns, o.columns, dtype
    )
