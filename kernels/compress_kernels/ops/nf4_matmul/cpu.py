"""The CPU road: the C++ kernels of the packed product, with the table in place of the grid."""

from __future__ import annotations

import torch
from torch import Tensor

from .operands import NF4Operands


def run(
    x: Tensor, o: NF4Operands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    return torch.ops.compress_kernels.native_nf4(x, o.packed, o.absmax, o.table, bias, residual, out)
