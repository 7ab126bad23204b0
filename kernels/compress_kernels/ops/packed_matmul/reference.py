"""``x Wᵀ`` by writing W out and multiplying: what every other backend is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...decode import packed_rows
from ...gradients import differentiable, packed_gradient
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
    weight = packed_rows(codes, scale, zero, bits, columns, x.dtype)
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


differentiable("compress_kernels::packed_reference", packed_gradient)


def run(
    x: Tensor, o: PackedOperands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    return packed_reference(x, o.codes, o.scale, o.zero, o.bits, o.columns, bias, residual, out or x.dtype)
