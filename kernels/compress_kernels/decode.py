"""Rows of a packed weight, decoded from the tensors that the operators read.

The reference operators and every operator's backward use these functions. Each takes the operands of one kind of weight and a
slice of its rows or their ids, and returns the dense rows ``[rows, in]`` in ``dtype``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .layouts.affine import affine
from .layouts.bits import unpack
from .layouts.integer import dequantize
from .layouts.sparse import SparseNM, unpack_mask

ALL = slice(None)
Rows = slice | Tensor
"""Which rows: a slice, or ids int64 ``[rows]``."""


def packed_rows(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    columns: int,
    dtype: torch.dtype,
    rows: Rows = ALL,
) -> Tensor:
    """Rows of packed integers: ``codes`` int32 ``[out, words]``, ``scale`` and ``zero`` ``[out or 1, groups]``."""
    scale = rows_of(scale, rows)
    return dequantize(unpack(codes[rows], bits, columns), scale, _zeros_of(zero, scale, rows, bits), dtype)


def nf4_rows(packed: Tensor, absmax: Tensor, table: Tensor, dtype: torch.dtype, rows: Rows = ALL) -> Tensor:
    """Rows of NF4: ``packed`` uint8 ``[out, in/2]``, ``absmax`` ``[out, blocks]``, ``table`` fp32 ``[16]``."""
    packed, absmax = packed[rows], absmax[rows]
    codes = torch.stack((packed >> 4, packed & 15), -1).to(torch.int32)
    values = table[codes].view(packed.shape[0], absmax.shape[1], -1)
    return (values * absmax.unsqueeze(-1)).view(packed.shape[0], -1).to(dtype)


def affine_rows(
    codes: Tensor,
    scale: Tensor,
    offset: Tensor,
    bits: int,
    group: int,
    columns: int,
    dtype: torch.dtype,
    rows: Rows = ALL,
) -> Tensor:
    """Rows of affine integers: ``codes`` int32 ``[out, words]``, ``scale`` and fp32 ``offset`` ``[out, groups]``."""
    centred = unpack(codes[rows], bits, columns) - (1 << (bits - 1))
    return affine(centred, scale[rows], offset[rows]).to(dtype)


def int8_rows(weight: Tensor, scale: Tensor, dtype: torch.dtype, rows: Rows = ALL) -> Tensor:
    """Rows of plain int8: ``weight`` int8 ``[out, in]``, ``scale`` ``[out or 1, groups]``."""
    scale = rows_of(scale, rows).to(dtype)
    values = weight[rows].to(dtype)
    return (values.view(len(values), scale.shape[1], -1) * scale.unsqueeze(-1)).view(values.shape)


def masked_rows(
    mask: Tensor,
    start: Tensor,
    values: Tensor,
    bits: int,
    scale: Tensor | None,
    zero: Tensor | None,
    columns: int,
    dtype: torch.dtype,
    rows: Rows = ALL,
) -> Tensor:
    """Rows of a sparse weight under a bit mask.

    Args:
        mask: uint8 ``[out, ⌈in/8⌉]``.
        start: int64 ``[out]`` or ``[out + 1]``, the bit of ``values`` at which each row begins.
        values: numbers (``scale`` is ``None``), or codes of ``bits`` bits in int32 words.
        bits: of one value.
        scale, zero: ``[out or 1, groups]``.
        columns: in.
        dtype: of the result.
        rows: which rows.
    """
    kept = unpack_mask(mask[rows], columns)
    # Bit of the stream at which the value of each kept column begins.
    position = start[: mask.shape[0]][rows, None] + (kept.cumsum(1) - 1) * bits
    position = position.masked_fill(~kept, 0)
    if scale is None:
        flat = values.view(-1)
        weight = flat[position.div(bits, rounding_mode="floor")].to(dtype) if flat.numel() else kept.to(dtype)
        return weight.masked_fill(~kept, 0)
    stream = values.view(-1).view(torch.uint8)
    if not stream.numel():
        return kept.to(dtype)
    byte = position >> 3
    following = (byte + 1).clamp_(max=stream.numel() - 1)
    window = stream[byte].to(torch.int32) | (stream[following].to(torch.int32) << 8)
    codes = (window >> (position & 7).to(torch.int32)) & ((1 << bits) - 1)
    scale = rows_of(scale, rows)
    return dequantize(codes, scale, _zeros_of(zero, scale, rows, bits), dtype).masked_fill(~kept, 0)


def row_counts(mask: Tensor) -> Tensor:
    """How many bits are set in each row of uint8 ``[out, bytes]``, int64 ``[out]``."""
    words = F.pad(mask, (0, -mask.shape[1] % 8)).contiguous().view(torch.int64)
    # Sums of two, four and eight neighbouring bits, then of eight bytes.
    pairs = words - ((words >> 1) & 0x5555555555555555)
    fours = (pairs & 0x3333333333333333) + ((pairs >> 2) & 0x3333333333333333)
    eights = (fours + (fours >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((eights * 0x0101010101010101) >> 56).sum(1)


def mask_starts(mask: Tensor, bits: int) -> Tensor:
    """The bit at which each row's values begin, int64 ``[out + 1]``, where rows follow each other without a gap."""
    return F.pad(row_counts(mask).cumsum(0), (1, 0)) * bits


def places_mask(places: Tensor, values: Tensor, n: int, m: int, columns: int) -> tuple[Tensor, Tensor]:
    """N:M places int32 as a bit mask uint8 ``[out, ⌈in/8⌉]``, and the bit at which each row's values begin."""
    mask = SparseNM(n, m).packed_mask({"weight_indices": places}, (places.shape[0], columns))
    row = values.shape[1] * values.element_size() * 8
    start = torch.arange(places.shape[0] + 1, dtype=torch.int64, device=places.device) * row
    return mask, start


def rows_of(parameter: Tensor, rows: Rows) -> Tensor:
    """The rows of a parameter ``[out or 1, groups]``; where there is one row, all share it."""
    return parameter if parameter.shape[0] == 1 else parameter[rows]


def _zeros_of(zero: Tensor | None, scale: Tensor, rows: Rows, bits: int) -> Tensor:
    """The zero points of some rows; a symmetric grid's is the middle code."""
    return torch.full_like(scale, 1 << (bits - 1)) if zero is None else rows_of(zero, rows)
