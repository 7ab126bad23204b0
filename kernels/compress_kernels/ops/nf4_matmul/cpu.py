"""The CPU backend: the C++ kernels of the packed product, with the table in place of the grid."""

from __future__ import annotations

import torch
from torch import Tensor

from ...decode import Rows
from ..autograd import needs_gradient, product
from .operands import NF4Operands


def _rows(packed: Tensor, absmax: Tensor, table: Tensor, dtype: torch.dtype, rows: Rows) -> Tensor:
    return torch.ops.compress_kernels.native_nf4_rows(packed[rows], absmax[rows], table, dtype)


@product("nf4_cpu", _rows)
def nf4_cpu(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    table: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: torch.dtype,
) -> Tensor:
    """The same product with a backward; its dispatch costs some microseconds more."""
    return torch.ops.compress_kernels.native_nf4(x, packed, absmax, table, bias, residual, out)


def run(
    x: Tensor, o: NF4Operands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    """``x Wᵀ`` by the C++ kernel, then bias and residual; :mod:`compress_kernels.ops.nf4_matmul` says of what."""
    if needs_gradient(x, bias, residual):
        return nf4_cpu(x, o.packed, o.absmax, o.table, bias, residual, out or x.dtype)
    return torch.ops.compress_kernels.native_nf4(x, o.packed, o.absmax, o.table, bias, residual, out)


def gather(ids: Tensor, o: NF4Operands, dtype: torch.dtype) -> Tensor:
    """The decoded rows of W at ``ids``, ``[…, in]``, in ``dtype``."""
    width = 2 * o.packed.shape[1]
    return torch.ops.compress_kernels.nf4_cpu_gather(ids, o.packed, o.absmax, o.table, width, dtype)
