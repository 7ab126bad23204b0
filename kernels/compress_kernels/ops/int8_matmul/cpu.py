"""The CPU backend: our own VNNI kernel where the CPU has AVX-512, else ``torch._int_mm``."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ... import native
from ...decode import Rows, int8_rows
from ...layouts import PlainInteger
from ..autograd import PIECE, needs_gradient, product
from ..epilogue import finish
from .operands import Int8Operands, operands, round_tokens

COLUMNS = 1 << 17
"""From here on the sums of a row may not fit into the kernel's int32."""


def unsupported_reason(device: torch.device) -> str | None:
    """Why it cannot run on a device: another one than the CPU; else None."""
    return None if device.type == "cpu" else "it runs on the CPU only"


def prepare(layout: PlainInteger, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Int8Operands:
    """Check the tensors and choose between the two products."""
    o = operands(layout, tensors, shape)
    fits = o.weight.shape[1] < COLUMNS and o.scale.shape[1] == 1
    return replace(o, native=fits and native.load().vectorised)


def note() -> str:
    """Which of the two it will be."""
    loaded = native.load()
    if loaded.vectorised:
        return loaded.note
    product = "torch._int_mm" if int_mm_is_exact() else "fp32, for torch._int_mm saturates on this CPU"
    return f"{product}: {loaded.note}"


@functools.cache
def int_mm_is_exact() -> bool:
    """Whether ``torch._int_mm`` adds up without saturating; on CPUs with AVX2 but no VNNI it adds pairs in 16 bits."""
    codes = torch.full((32, 64), 127, dtype=torch.int8)
    return bool((torch._int_mm(codes, codes.t()) == 64 * 127 * 127).all())


def integer_product(codes: Tensor, weight: Tensor) -> Tensor:
    """``codes weightᵀ`` fp32 ``[rows, out]`` of int8 matrices; where torch's integer product saturates, in fp32, in pieces."""
    if int_mm_is_exact():
        return torch._int_mm(codes, weight.t()).float()
    wide = codes.float()
    pieces = weight.split(max(1, PIECE // max(weight.shape[1], 1)))
    return torch.cat([wide @ piece.float().t() for piece in pieces], dim=1)


def _rows(weight: Tensor, scale: Tensor, vectorised: bool, dtype: torch.dtype, rows: Rows) -> Tensor:
    return int8_rows(weight, scale, dtype, rows)


@product("int8_cpu", _rows)
def int8_cpu(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    vectorised: bool,
    bias: Tensor | None,
    residual: Tensor | None,
    out: torch.dtype,
) -> Tensor:
    """One integer product for all tokens, then both scales in fp32; ``vectorised`` takes the C++ kernel."""
    if vectorised:
        return torch.ops.compress_kernels.native_int8(x, weight, scale, bias, residual, out)
    if scale.shape[1] != 1:
        raise ValueError("the int8 kernel takes one scale for each output feature, not groups")
    shape = (*x.shape[:-1], weight.shape[0])
    if 0 in shape or x.shape[-1] == 0:
        return x.new_zeros(shape, dtype=out)
    codes, token = round_tokens(x.reshape(-1, x.shape[-1]))
    total = integer_product(codes, weight)
    return finish(total.mul_(token).mul_(scale.float().t()).view(shape), bias, residual, out)


def run(
    x: Tensor, o: Int8Operands, bias: Tensor | None, residual: Tensor | None, out: torch.dtype | None
) -> Tensor:
    """``x Wᵀ`` by the C++ kernel, then bias and residual; :mod:`compress_kernels.ops.int8_matmul` says of what."""
    if o.native and not needs_gradient(x, bias, residual):
        return torch.ops.compress_kernels.native_int8(x, o.weight, o.scale, bias, residual, out)
    return int8_cpu(x, o.weight, o.scale, o.native, bias, residual, out or x.dtype)


def gather(ids: Tensor, o: Int8Operands, dtype: torch.dtype) -> Tensor:
    """The decoded rows of W at ``ids``, ``[…, in]``, in ``dtype``."""
    width = o.weight.shape[1]
    return torch.ops.compress_kernels.int8_cpu_gather(ids, o.weight, o.scale, o.native, width, dtype)
