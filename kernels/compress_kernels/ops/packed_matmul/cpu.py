"""The CPU backend: the C++ kernels of ``compress_kernels.native``, on the tensors on disk as they are or interleaved."""

from __future__ import annotations

import torch
from torch import Tensor

from ...decode import Rows, rows_of
from ...layouts import PackedInteger
from ..autograd import needs_gradient, product
from ..sixteen import plain, plain_rows
from .operands import PackedOperands


def _rows(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group: int,
    columns: int,
    interleaved: bool,
    dtype: torch.dtype,
    rows: Rows,
) -> Tensor:
    some = plain_rows if interleaved else rows_of
    scale, zero = some(scale, rows), None if zero is None else some(zero, rows)
    codes = plain_rows(codes, rows) if interleaved else codes[rows]
    return torch.ops.compress_kernels.native_packed_rows(codes, scale, zero, bits, group, columns, dtype)


@product("packed_cpu", _rows)
def packed_cpu(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    group: int,
    columns: int,
    interleaved: bool,
    bias: Tensor | None,
    residual: Tensor | None,
    out: torch.dtype,
) -> Tensor:
    """The same product with a backward; its dispatch costs some microseconds more."""
    return torch.ops.compress_kernels.native_packed(
        x, codes, scale, zero, bits, group, columns, interleaved, bias, residual, out
    )


def run(
    x: Tensor, o: PackedOperands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    """``x Wᵀ`` by the C++ kernel, then bias and residual; :mod:`compress_kernels.ops.packed_matmul` says of what."""
    operands = (o.codes, o.scale, o.zero, o.bits, o.group, o.columns, o.interleaved)
    if needs_gradient(x, bias, residual):
        return packed_cpu(x, *operands, bias, residual, out or x.dtype)
    return torch.ops.compress_kernels.native_packed(x, *operands, bias, residual, out)


def gather(ids: Tensor, o: PackedOperands, dtype: torch.dtype) -> Tensor:
    """The decoded rows of W at ``ids``, ``[…, in]``, in ``dtype``."""
    return torch.ops.compress_kernels.packed_cpu_gather(
        ids, o.codes, o.scale, o.zero, o.bits, o.group, o.columns, o.interleaved, o.columns, dtype
    )


def repacked(o: PackedOperands) -> tuple[str, ...]:
    """What need not be kept beside interleaved operands; scales of a whole tensor are as they were."""
    if not o.interleaved:
        return ()
    return ("weight_packed",) if len(o.scale) == 1 else ("weight_packed", "weight_scale")


def restore(layout: PackedInteger, o: PackedOperands, shape: tuple[int, int]) -> dict[str, Tensor]:
    """The tensors on disk from interleaved operands."""
    tensors = {"weight_packed": o.codes, "weight_scale": o.scale}
    specs = layout.specs(shape)
    return {suffix: plain(tensors[suffix]).view(specs[suffix].shape) for suffix in repacked(o)}
