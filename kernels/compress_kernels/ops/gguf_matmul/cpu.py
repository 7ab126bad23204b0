"""The CPU backend: the C++ kernels of ``compress_kernels.native``, which read the blocks as they lie in the file."""

from __future__ import annotations

import torch
from torch import Tensor

from ...decode import Rows
from ..autograd import needs_gradient, product
from .operands import GGUFOperands


def _rows(packed: Tensor, code: int, columns: int, dtype: torch.dtype, rows: Rows) -> Tensor:
    return torch.ops.compress_kernels.native_gguf_rows(packed[rows], code, columns, dtype)


@product("gguf_cpu", _rows)
def gguf_cpu(
    x: Tensor,
    packed: Tensor,
    code: int,
    columns: int,
    bias: Tensor | None,
    residual: Tensor | None,
    out: torch.dtype,
) -> Tensor:
    """The same product with a backward; its dispatch costs some microseconds more."""
    return torch.ops.compress_kernels.native_gguf(x, packed, code, columns, bias, residual, out)


def run(
    x: Tensor, o: GGUFOperands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    """``x Wᵀ`` by the C++ kernel, then bias and residual; :mod:`compress_kernels.ops.gguf_matmul` says of what."""
    if needs_gradient(x, bias, residual):
        return gguf_cpu(x, o.packed, o.code, o.columns, bias, residual, out or x.dtype)
    return torch.ops.compress_kernels.native_gguf(x, o.packed, o.code, o.columns, bias, residual, out)


def gather(ids: Tensor, o: GGUFOperands, dtype: torch.dtype) -> Tensor:
    """The decoded rows of W at ``ids``, ``[…, in]``, in ``dtype``."""
    return torch.ops.compress_kernels.gguf_cpu_gather(ids, o.packed, o.code, o.columns, o.columns, dtype)
