"""``x Wᵀ`` by writing W out and multiplying: what every other backend is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...layouts.integer import dequantize
from ...layouts.sparse import unpack_mask
from ..epilogue import finish
from .operands import MaskOperands


@torch.library.custom_op("compress_kernels::sparse_reference", mutates_args=())
def sparse_reference(
    x: Tensor,
    mask: Tensor,
    start: Tensor,
    values: Tensor,
    bits: int,
    scale: Tensor | None,
    zero: Tensor | None,
    columns: int,
    bias: Tensor | None,
    residual: Tensor | None,
    out: torch.dtype,
) -> Tensor:
    """The dense weight in the dtype of ``x``, then one product in that dtype."""
    weight = dense(mask, start, values, bits, scale, zero, columns, x.dtype)
    return finish(F.linear(x, weight), bias, residual, out)


@sparse_reference.register_fake
def _(
    x: Tensor,
    mask: Tensor,
    start: Tensor,
    values: Tensor,
    bits: int,
    scale: Tensor | None,
    zero: Tensor | None,
    columns: int,
    bias: Tensor | None,
    residual: Tensor | None,
    out: torch.dtype,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], mask.shape[0]), dtype=out)


def dense(
    mask: Tensor,
    start: Tensor,
    values: Tensor,
    bits: int,
    scale: Tensor | None,
    zero: Tensor | None,
    columns: int,
    dtype: torch.dtype,
) -> Tensor:
    """The weight ``[out, in]`` that :class:`MaskOperands` describe."""
    kept = unpack_mask(mask, columns)
    # Bit of the stream at which the value of each kept column begins.
    position = start[:-1, None] + (kept.cumsum(1) - 1) * bits
    position = position.masked_fill(~kept, 0)
    if scale is None:
        flat = values.view(-1)
        weight = flat[position.div(bits, rounding_mode="floor")].to(dtype) if flat.numel() else kept.to(dtype)
        return weight.masked_fill(~kept, 0)
    stream = F.pad(values.view(-1).view(torch.uint8).to(torch.int32), (0, 2))
    byte = position >> 3
    window = stream[byte] | (stream[byte + 1] << 8)
    codes = (window >> (position & 7).to(torch.int32)) & ((1 << bits) - 1)
    middle = torch.full_like(scale, 1 << (bits - 1)) if zero is None else zero
    return dequantize(codes, scale, middle, dtype).masked_fill(~kept, 0)


def run(
    x: Tensor, o: MaskOperands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    return sparse_reference(
        x, o.mask, o.start, o.values, o.bits, o.scale, o.zero, o.columns, bias, residual, out or x.dtype
    )
