"""``x Wᵀ`` by writing W out and multiplying: what every other backend is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...layouts.bits import unpack
from ...layouts.integer import dequantize
from ..epilogue import finish
from .operands import PackedOperands


@torch.library.custom_op("compress_kernels::packed_reference", mutates_args=())
def packed_reference(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    columns: int,
    bias: Tensor | None,
    residual: Tensor | None,
    out: torch.dtype,
) -> Tensor:
    """The dense weight in the dtype of ``x``, then one product in that dtype."""
    middle = torch.full_like(scale, 1 << (bits - 1)) if zero is None else zero
    weight = dequantize(unpack(codes, bits, columns), scale, middle, x.dtype)
    return finish(F.linear(x, weight), bias, residual, out)


@packed_reference.register_fake
def _(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    columns: int,
    bias: Tensor | None,
    residual: Tensor | None,
    out: torch.dtype,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], codes.shape[0]), dtype=out)


def run(
    x: Tensor, o: PackedOperands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    return packed_reference(x, o.codes, o.scale, o.zero, o.bits, o.columns, bias, residual, out or x.dtype)
