"""``x Wᵀ`` by writing W out and multiplying: what every other backend is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...decode import nf4_rows
from ..autograd import product
from ..epilogue import finish
from .operands import NF4Operands


@product("nf4_reference", nf4_rows)
def nf4_reference(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    table: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: torch.dtype,
) -> Tensor:
    """The dense weight in the dtype of ``x``, then one product in that dtype."""
    weight = nf4_rows(packed, absmax, table, x.dtype)
    return finish(F.linear(x, weight), bias, residual, out)


def run(
    x: Tensor, o: NF4Operands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    """``x Wᵀ`` by the reference, then bias and residual; :mod:`compress_kernels.ops.nf4_matmul` says of what."""
    return nf4_reference(x, o.packed, o.absmax, o.table, bias, residual, out or x.dtype)


def gather(ids: Tensor, o: NF4Operands, dtype: torch.dtype) -> Tensor:
    """The decoded rows of W at ``ids``, ``[…, in]``, in ``dtype``."""
    width = 2 * o.packed.shape[1]
    return torch.ops.compress_kernels.nf4_reference_gather(ids, o.packed, o.absmax, o.table, width, dtype)
