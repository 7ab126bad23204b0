"""``x Wᵀ`` by writing W out and multiplying: what every other backend is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..autograd import product
from ..epilogue import finish
from .operands import FloatOperands, float_rows


@product("float_reference", float_rows)
def float_reference(
    x: Tensor,
    elements: Tensor,
    scale: Tensor,
    type: str,
    group: str,
    bias: Tensor | None,
    residual: Tensor | None,
    out: torch.dtype,
) -> Tensor:
    """The dense weight in the dtype of ``x``, then one product in that dtype."""
    weight = float_rows(elements, scale, type, group, x.dtype)
    return finish(F.linear(x, weight), bias, residual, out)


def run(
    x: Tensor, o: FloatOperands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    """``x Wᵀ`` by the reference, then bias and residual; :mod:`compress_kernels.ops.float_matmul` says of what."""
    return float_reference(x, o.elements, o.scale, o.type, o.group, bias, residual, out or x.dtype)


def gather(ids: Tensor, o: FloatOperands, dtype: torch.dtype) -> Tensor:
    """The decoded rows of W at ``ids``, ``[…, in]``, in ``dtype``."""
    width = o.elements.shape[1] * (1 if o.type.endswith("8") else 2)
    return torch.ops.compress_kernels.float_reference_gather(
        ids, o.elements, o.scale, o.type, o.group, width, dtype
    )
