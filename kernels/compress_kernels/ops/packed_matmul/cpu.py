"""The CPU road: the C++ kernels of ``compress_kernels.native``, which read the tensors on disk as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from .operands import PackedOperands


def run(
    x: Tensor, o: PackedOperands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    return torch.ops.compress_kernels.native_packed(
        x, o.codes, o.scale, o.zero, o.bits, o.group, o.columns, bias, residual, out
    )
