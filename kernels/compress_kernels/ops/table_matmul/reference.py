"""``x Wᵀ`` by writing W out and multiplying."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...layouts.value_table import table_rows
from ..autograd import product
from ..epilogue import finish
from .operands import TableOperands


@product("table_reference", table_rows)
def table_reference(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    kind: str,
    bits: int,
    columns: int,
    bias: Tensor | None,
    residual: Tensor | None,
    out: torch.dtype,
) -> Tensor:
    """The dense weight in the dtype of ``x``, then one product in that dtype."""
    weight = table_rows(packed, scale, kind, bits, columns, x.dtype)
    return finish(F.linear(x, weight), bias, residual, out)


def run(
    x: Tensor, o: TableOperands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    """See :mod:`compress_kernels.ops.table_matmul`."""
    return table_reference(x, o.packed, o.scale, o.kind, o.bits, o.columns, bias, residual, out or x.dtype)


def gather(ids: Tensor, o: TableOperands, dtype: torch.dtype) -> Tensor:
    """Rows of the weight by their ids; see :mod:`compress_kernels.ops.gather`."""
    return torch.ops.compress_kernels.table_reference_gather(
        ids, o.packed, o.scale, o.kind, o.bits, o.columns, o.columns, dtype
    )
