"""The CPU backend: the C++ kernels of ``compress_kernels.native``, which expand 32 columns at a time in a register."""

from __future__ import annotations

import torch
from torch import Tensor

from ...decode import Rows, masked_rows, places_mask, rows_of
from ..autograd import needs_gradient, product
from ..sixteen import plain_rows
from .interleave import plain_codes
from .operands import MaskOperands
from .pairs import paired
from .pairs import plain_codes as pairs_codes


def _rows(
    mask: Tensor,
    start: Tensor,
    values: Tensor,
    bits: int,
    scale: Tensor | None,
    zero: Tensor | None,
    group: int,
    columns: int,
    interleaved: bool,
    dtype: torch.dtype,
    rows: Rows,
) -> Tensor:
    if paired(mask, interleaved):
        assert scale is not None
        codes = pairs_codes(mask, start, values, scale, zero, group, columns, rows)
        scale, zero = plain_rows(scale, rows), None if zero is None else plain_rows(zero, rows)
        return torch.ops.compress_kernels.native_packed_rows(codes, scale, zero, bits, group, columns, dtype)
    if interleaved:
        places, values = plain_codes(mask, values, rows)
        mask, start = places_mask(places, values, 2, 4, columns)
        scale = None if scale is None else plain_rows(scale, rows)
        return torch.ops.compress_kernels.native_sparse_rows(
            mask, start, values, bits, scale, None, group, columns, dtype
        )
    if isinstance(rows, Tensor):  # rows whose values do not follow each other
        return masked_rows(mask, start, values, bits, scale, zero, columns, dtype, rows)
    scale, zero = (None if tensor is None else rows_of(tensor, rows) for tensor in (scale, zero))
    return torch.ops.compress_kernels.native_sparse_rows(
        mask[rows], start[rows.start : rows.stop + 1], values, bits, scale, zero, group, columns, dtype
    )


@product("sparse_cpu", _rows)
def sparse_cpu(
    x: Tensor,
    mask: Tensor,
    start: Tensor,
    values: Tensor,
    bits: int,
    scale: Tensor | None,
    zero: Tensor | None,
    group: int,
    columns: int,
    interleaved: bool,
    bias: Tensor | None,
    residual: Tensor | None,
    out: torch.dtype,
) -> Tensor:
    """The same product with a backward; its dispatch costs some microseconds more."""
    return torch.ops.compress_kernels.native_sparse(
        x, mask, start, values, bits, scale, zero, group, columns, interleaved, bias, residual, out
    )


def run(
    x: Tensor, o: MaskOperands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    """``x Wᵀ`` by the C++ kernel, then bias and residual; :mod:`compress_kernels.ops.sparse_matmul` says of what."""
    operands = (o.mask, o.start, o.values, o.bits, o.scale, o.zero, o.group, o.columns, o.interleaved)
    if needs_gradient(x, bias, residual):
        return sparse_cpu(x, *operands, bias, residual, out or x.dtype)
    return torch.ops.compress_kernels.native_sparse(x, *operands, bias, residual, out)


def gather(ids: Tensor, o: MaskOperands, dtype: torch.dtype) -> Tensor:
    """The decoded rows of W at ``ids``, ``[…, in]``, in ``dtype``."""
    return torch.ops.compress_kernels.sparse_cpu_gather(
        ids,
        o.mask,
        o.start,
        o.values,
        o.bits,
        o.scale,
        o.zero,
        o.group,
        o.columns,
        o.interleaved,
        o.columns,
        dtype,
    )
