"""``x Wᵀ`` by writing W out and multiplying: what every other backend is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...decode import nf4_rows
from ...gradients import differentiable, nf4_gradient
from ..epilogue import finish
from .operands import NF4Operands


@torch.library.custom_op("compress_kernels::nf4_reference", mutates_args=())
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
    return finish(F.linear(x, nf4_rows(packed, absmax, table, x.dtype)), bias, residual, out)


@nf4_reference.register_fake
def _(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    table: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: torch.dtype,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], packed.shape[0]), dtype=out)


differentiable("compress_kernels::nf4_reference", nf4_gradient)


def run(
    x: Tensor, o: NF4Operands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    return nf4_reference(x, o.packed, o.absmax, o.table, bias, residual, out or x.dtype)
