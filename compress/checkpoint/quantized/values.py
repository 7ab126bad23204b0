"""Arithmetic that stored forms share: 4-bit floats, exponents, block scales, and decoding a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from compress_kernels.layouts.floats import E8M0_BIAS
from compress_kernels.value_types import E2M1_MAGNITUDES
from torch import Tensor

_E2M1 = (*E2M1_MAGNITUDES, *(-value for value in E2M1_MAGNITUDES))
"""The values of the 16 codes of E2M1 (OCP Microscaling Formats 1.0, section 5.3.3)."""
_STRIP = 1 << 22


def e2m1(packed: Tensor) -> Tensor:
    """The values fp32 ``[…, 2·n]`` of 4-bit floats ``[…, n]``, two in a byte, the first in its low half."""
    octets = packed.contiguous().view(torch.uint8)
    codes = torch.stack((octets & 15, octets >> 4), -1).flatten(-2)
    return torch.tensor(_E2M1)[codes.to(torch.int32)]


def scale_values(scale: Tensor) -> Tensor:
    """A scale in fp32. Bytes are exponents E8M0, biased by 127 (OCP Microscaling Formats 1.0, section 5.4.1)."""
    if scale.dtype == torch.uint8:
        return torch.exp2(scale.to(torch.float32) - E8M0_BIAS)
    return scale.to(torch.float32)


def scaled(values: Tensor, scale: Tensor, block: tuple[int, int]) -> Tensor:
    """``values [rows, columns]`` times ``scale [⌈rows/b₀⌉, ⌈columns/b₁⌉]``, one entry for each ``block``."""
    rows, columns = values.shape
    if block[1] == columns and block[0] == 1:
        return values * scale
    whole = block[0] == 1 or scale.shape[0] == 1
    spread = scale if whole else scale.repeat_interleave(block[0], 0)[:rows]
    if columns % block[1] == 0:
        return (values.reshape(rows, -1, block[1]) * spread.unsqueeze(-1)).view(rows, columns)
    return values * spread.repeat_interleave(block[1], 1)[:, :columns]


def by_strips(
    rows: int, columns: int, dtype: torch.dtype, part: Callable[[int, int], Tensor], multiple: int = 1
) -> Tensor:
    """A matrix of ``dtype`` filled by ``part(first, last)``, which gives some rows in fp32.

    Strips are a multiple of ``multiple`` rows and small, so that fp32 copies of large matrices never exist as a whole.
    """
    result = torch.empty(rows, columns, dtype=dtype)
    step = max(1, _STRIP // max(1, columns) // multiple) * multiple
    for first in range(0, rows, step):
        last = min(rows, first + step)
        result[first:last] = part(first, last)
    return result
