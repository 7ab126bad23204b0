"""Tokens rounded to int8, an exact integer product, and both scales: what every other backend is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from ...decode import int8_rows
from ..autograd import product
from ..epilogue import finish
from .operands import Int8Operands, round_tokens


@product("int8_reference", int8_rows)
def int8_reference(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, residual: Tensor | None, out: torch.dtype
) -> Tensor:
    """Group by group in float64, in which int8 products are exact."""
    codes, token = round_tokens(x.reshape(-1, x.shape[-1]))
    groups = scale.shape[1]
    left = codes.double().view(codes.shape[0], groups, x.shape[-1] // groups)
    right = weight.double().view(weight.shape[0], groups, x.shape[-1] // groups)
    product = torch.einsum("mgk,ngk,ng->mn", left, right, scale.double().expand(weight.shape[0], -1))
    return finish((product * token).float().view(*x.shape[:-1], weight.shape[0]), bias, residual, out)


def run(
    x: Tensor, o: Int8Operands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    """``x Wᵀ`` by the reference, then bias and residual; :mod:`compress_kernels.ops.int8_matmul` says of what."""
    return int8_reference(x, o.weight, o.scale, bias, residual, out or x.dtype)


def gather(ids: Tensor, o: Int8Operands, dtype: torch.dtype) -> Tensor:
    """The decoded rows of W at ``ids``, ``[…, in]``, in ``dtype``."""
    width = o.weight.shape[1]
    return torch.ops.compress_kernels.int8_reference_gather(ids, o.weight, o.scale, width, dtype)
