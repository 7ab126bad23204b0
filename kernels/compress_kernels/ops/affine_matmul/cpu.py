"""The CPU backend: the C++ kernels multiply by ``scale · (code − middle)``; the offsets meet the sums of x by group."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...decode import affine_rows
from ..autograd import needs_gradient, product
from .operands import AffineOperands


def _multiply(
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
    if x.shape[-1] != columns:
        raise ValueError(f"x has {x.shape[-1]} features where the weight takes {columns}")
    sums = x.unflatten(-1, (-1, group)).sum(-1, dtype=torch.float32)
    added = F.linear(sums, offset)
    if residual is not None:
        added += residual
    return torch.ops.compress_kernels.native_packed(
        x, codes, scale, None, bits, group, columns, False, bias, added, out
    )


affine_cpu = product("affine_cpu", affine_rows)(_multiply)
"""The same product with a backward."""


def run(
    x: Tensor, o: AffineOperands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    """See :mod:`compress_kernels.ops.affine_matmul`."""
    operands = (o.codes, o.scale, o.offset, o.bits, o.group, o.columns)
    multiply = affine_cpu if needs_gradient(x, bias, residual) else _multiply
    return multiply(x, *operands, bias, residual, out or x.dtype)


def gather(ids: Tensor, o: AffineOperands, dtype: torch.dtype) -> Tensor:
    """Rows of the weight by their ids; see :mod:`compress_kernels.ops.gather`."""
    return torch.ops.compress_kernels.affine_cpu_gather(
        ids, o.codes, o.scale, o.offset, o.bits, o.group, o.columns, o.columns, dtype
    )
