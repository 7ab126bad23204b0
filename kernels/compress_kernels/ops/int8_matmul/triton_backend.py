"""The Triton backend: a kernel that rounds tokens, and one that multiplies integers."""

from __future__ import annotations

import torch
from torch import Tensor

from ...decode import int8_rows
from ..autograd import is_plain, product
from ..triton import DECODE_ROWS
from ..tuning import settings
from .operands import Int8Operands

__all__ = ["run"]


def _rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`.operands.round_tokens`, in one launch."""
    from .triton_kernel import round_kernel  # noqa: PLC0415 (triton is optional)

    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    token = x.new_empty((x.shape[0], 1), dtype=torch.float32)
    tune = settings("int8_matmul", "round", x.device)
    round_kernel[(x.shape[0],)](x, codes, token, *x.shape, **tune)
    return codes, token


def _multiply(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, residual: Tensor | None, out: torch.dtype
) -> Tensor:
    """Launch :func:`triton_kernel.int8_kernel`."""
    from .triton_kernel import int8_kernel  # noqa: PLC0415 (triton is optional)

    if scale.shape[1] != 1:
        raise ValueError("the int8 kernel takes one scale for each output feature, not groups")
    shape = (*x.shape[:-1], weight.shape[0])
    y = x.new_empty(shape, dtype=out)
    if y.numel() == 0:
        return y
    codes, token = _rounded(x.reshape(-1, x.shape[-1]).contiguous())
    m, n, k = codes.shape[0], weight.shape[0], weight.shape[1]
    tune = dict(settings("int8_matmul", "decode" if m <= DECODE_ROWS else "prefill", x.device))
    bias = None if bias is None else bias.contiguous()
    residual = None if residual is None else residual.reshape(-1, n).contiguous()
    int8_kernel[(-(-n // tune["BN"]), -(-m // tune["BM"]))](
        codes, token, weight, scale, bias, residual, y, m, n, k, 0 if scale.shape[0] == 1 else 1,
        HAS_BIAS=bias is not None, HAS_ADDEND=residual is not None, **tune,
    )  # fmt: skip
    return y


int8_triton = product("int8_triton", int8_rows)(_multiply)
"""The same product as an operator: with a backward, and for tensors without values."""


def run(
    x: Tensor, o: Int8Operands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    """``x Wᵀ`` by the Triton kernels, then bias and residual; :mod:`compress_kernels.ops.int8_matmul` says of what."""
    multiply = _multiply if is_plain(x, bias, residual) else int8_triton
    return multiply(x, o.weight, o.scale, bias, residual, out or x.dtype)


def gather(ids: Tensor, o: Int8Operands, dtype: torch.dtype) -> Tensor:
    """The decoded rows of W at ``ids``, ``[…, in]``, in ``dtype``."""
    width = o.weight.shape[1]
    return torch.ops.compress_kernels.int8_triton_gather(ids, o.weight, o.scale, width, dtype)
