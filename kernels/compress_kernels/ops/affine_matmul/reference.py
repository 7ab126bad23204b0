"""``x Wᵀ`` by writing W out and multiplying: what the other backend is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...decode import affine_rows
from ..autograd import product
from ..epilogue import finish
from .operands import AffineOperands


@product("affine_reference", affine_rows)
def affine_reference(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    offset: Tensor,
    bits: int,
    group: int,
    columns: int,
    bias: Tensor | None,
    residual: Tensor | None,
    out: torch.dtype,
) -> Tensor:
    """The dense weight in the dtype of ``x``, then one product in that dtype."""
    weight = affine_rows(codes, scale, offset, bits, group, columns, x.dtype)
    return finish(F.linear(x, weight), bias, residual, out)


def run(
    x: Tensor, o: AffineOperands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    """See :mod:`compress_kernels.ops.affine_matmul`."""
    operands = (o.codes, o.scale, o.offset, o.bits, o.group, o.columns)
    return affine_reference(x, *operands, bias, residual, out or x.dtype)


def gather(ids: Tensor, o: AffineOperands, dtype: torch.dtype) -> Tensor:
    """Rows of the weight by their ids; see :mod:`compress_kernels.ops.gather`."""
    return torch.ops.compress_kernels.affine_reference_gather(
        ids, o.codes, o.scale, o.offset, o.bits, o.group, o.columns, o.columns, dtype
    )
