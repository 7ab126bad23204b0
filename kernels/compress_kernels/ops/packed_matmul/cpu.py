"""The CPU backend: the C++ kernels of ``compress_kernels.native``, which read the tensors on disk as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from ...decode import Rows, rows_of
from ..autograd import needs_gradient, product
from .operands import PackedOperands


def _rows(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group: int,
    columns: int,
    dtype: torch.dtype,
    rows: Rows,
) -> Tensor:
    scale, zero = rows_of(scale, rows), None if zero is None else rows_of(zero, rows)
    return torch.ops.compress_kernels.native_packed_rows(
        codes[rows], scale, zero, bits, group, columns, dtype
    )


@product("packed_cpu", _rows)
def packed_cpu(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group: int,
    columns: int,
    bias: Tensor | None,
    residual: Tensor | None,
    out: torch.dtype,
) -> Tensor:
    """The same product with a backward; its dispatch costs some microseconds more."""
    return torch.ops.compress_kernels.native_packed(
        x, codes, scale, zero, bits, group, columns, bias, residual, out
    )


def run(
    x: Tensor, o: PackedOperands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    """``x Wᵀ`` by the C++ kernel, then bias and residual; :mod:`compress_kernels.ops.packed_matmul` says of what."""
    operands = (o.codes, o.scale, o.zero, o.bits, o.group, o.columns)
    if needs_gradient(x, bias, residual):
        return packed_cpu(x, *operands, bias, residual, out or x.dtype)
    return torch.ops.compress_kernels.native_packed(x, *operands, bias, residual, out)


def gather(ids: Tensor, o: PackedOperands, dtype: torch.dtype) -> Tensor:
    """The decoded rows of W at ``ids``, ``[…, in]``, in ``dtype``."""
    return torch.ops.compress_kernels.packed_cpu_gather(
        ids, o.codes, o.scale, o.zero, o.bits, o.group, o.columns, o.columns, dtype
    )
