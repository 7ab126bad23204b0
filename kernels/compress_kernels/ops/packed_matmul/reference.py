"""``x Wᵀ`` by writing W out and multiplying: what every other backend is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...decode import packed_rows
from ..autograd import product
from ..epilogue import finish
from .operands import PackedOperands


@product("packed_reference", packed_rows)
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


def run(
    x: Tensor, o: PackedOperands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    """``x Wᵀ`` by the reference, then bias and residual; :mod:`compress_kernels.ops.packed_matmul` says of what."""
    return packed_reference(x, o.codes, o.scale, o.zero, o.bits, o.columns, bias, residual, out or x.dtype)


def gather(ids: Tensor, o: PackedOperands, dtype: torch.dtype) -> Tensor:
    """The decoded rows of W at ``ids``, ``[…, in]``, in ``dtype``."""
    return torch.ops.compress_kernels.packed_reference_gather(
        ids, o.codes, o.scale, o.zero, o.bits, o.columns, o.columns, dtype
    )
