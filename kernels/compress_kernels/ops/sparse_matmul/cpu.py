"""The CPU road: the C++ kernels of ``compress_kernels.native``, which expand 32 columns at a time in a register."""

from __future__ import annotations

import torch
from torch import Tensor

from .operands import MaskOperands


def run(
    x: Tensor, o: MaskOperands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    return torch.ops.compress_kernels.native_sparse(
        x, o.mask, o.start, o.values, o.bits, o.scale, o.zero, o.group, o.columns, bias, residual, out
    )
