"""``x Wᵀ`` by writing W out and multiplying: what every other backend is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...decode import masked_rows
from ..autograd import product
from ..epilogue import finish
from .operands import MaskOperands


@product("sparse_reference", masked_rows)
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
    weight = masked_rows(mask, start, values, bits, scale, zero, columns, x.dtype)
    return finish(F.linear(x, weight), bias, residual, out)


def run(
    x: Tensor, o: MaskOperands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    """``x Wᵀ`` by the reference, then bias and residual; :mod:`compress_kernels.ops.sparse_matmul` says of what."""
    return sparse_reference(
        x, o.mask, o.start, o.values, o.bits, o.scale, o.zero, o.columns, bias, residual, out or x.dtype
    )


def gather(ids: Tensor, o: MaskOperands, dtype: torch.dtype) -> Tensor:
    """The decoded rows of W at ``ids``, ``[…, in]``, in ``dtype``."""
    return torch.ops.compress_kernels.sparse_reference_gather(
        ids, o.mask, o.start, o.values, o.bits, o.scale, o.zero, o.columns, o.columns, dtype
    )
