"""``x Wᵀ`` by writing W out and multiplying: what every other backend is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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
    codes = torch.stack((packed >> 4, packed & 15), -1).to(torch.int32)
    values = table[codes].view(packed.shape[0], absmax.shape[1], -1)
    weight = (values * absmax.unsqueeze(-1)).view(packed.shape[0], -1).to(x.dtype)
    return finish(F.linear(x, weight), bias, residual, out)


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


def run(
    x: Tensor, o: NF4Operands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    return nf4_reference(x, o.packed, o.absmax, o.table, bias, residual, out or x.dtype)
