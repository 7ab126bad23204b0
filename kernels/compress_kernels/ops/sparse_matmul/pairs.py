"""4-bit codes under a bit mask as pairs of rows: the order in which the AVX-512 kernels of a few tokens read them.

Rows r and r + 16 of 32 are a pair: a byte holds their codes in one column, the zero point for one that is not kept, and is
left out where neither is. The masks of the pairs (half a bit for each weight) and the bytes are one stream, ``values``
uint8, in which ``start`` int64 ``[blocks + 1]`` has the first byte of every 32 rows; ``mask`` is uint8 ``[out, 0]``. Scales
and zero points are those of sixteen rows side by side (:mod:`compress_kernels.ops.sixteen`). A weight that is kept though
its code is the zero point looks like one that is not: ``kept_zeros`` uint8 holds the steps from each to the next.

With a share d of the weights kept at random a weight takes 4 (2 d - d²) + ½ bits, 3½ at one half; on disk 4 d + 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor

from ... import native
from ...decode import Rows
from ...layouts import TensorSpec
from ...layouts.bits import pack, unpack
from ...layouts.sparse import pack_mask
from ..dispatch import Room
from ..sixteen import ROWS, plain, plain_rows, woven
from .operands import MaskOperands

_BLOCK = 2 * ROWS
"""Rows of a block."""

_UNIT = 32
"""Columns whose masks lie together; a group is a multiple of them."""

_SKIP = 255
"""A step of so many, and what follows."""


def pair_up(o: MaskOperands, room: Room | None = None) -> MaskOperands:
    """The same weight as pairs, where this CPU has a kernel for it: a bit mask with codes of four bits.

    Args:
        o: mask, codes, scales and zero points as the other kernels read them.
        room: nobody else has the scales of ``o``: they are changed, and the pairs go there.
    """
    if o.interleaved or o.scale is None or not _possible(o):
        return o
    values, start, kept_zeros = torch.ops.compress_kernels.native_pairs(
        o.mask, o.start, o.values, o.scale, o.zero, o.group, o.columns
    )
    return dataclasses.replace(
        o,
        mask=o.mask.new_empty((len(o.mask), 0)),
        start=start,
        values=room(values) if room else values,
        scale=woven(o.scale, in_place=room is not None),
        zero=None if o.zero is None else woven(o.zero),
        interleaved=True,
        kept_zeros=kept_zeros,
    )


def paired(mask: Tensor, interleaved: bool) -> bool:
    """Whether operands with this mask are pairs."""
    return interleaved and mask.shape[1] == 0


def plain_codes(
    mask: Tensor,
    start: Tensor,
    values: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    group: int,
    columns: int,
    rows: Rows,
) -> Tensor:
    """Packed words int32 ``[rows, in / 8]`` of all codes of some rows, the zero point where nothing is kept."""
    blocks: Iterable[int]
    at: Rows
    if isinstance(rows, Tensor):
        blocks, at = (rows // _BLOCK).tolist(), torch.arange(len(rows)) * _BLOCK + rows % _BLOCK
    else:
        first, last, _ = rows.indices(len(mask))
        begin = first // _BLOCK
        blocks, at = range(begin, -(-last // _BLOCK)), slice(first - begin * _BLOCK, last - begin * _BLOCK)
    codes = torch.ops.compress_kernels.native_pairs_codes(
        mask, start, values, scale, zero, group, columns, list(blocks)
    )
    return plain_rows(codes, at)


def restore(o: MaskOperands, specs: dict[str, TensorSpec]) -> dict[str, Tensor]:
    """The tensors on disk from pairs."""
    assert o.scale is not None and o.kept_zeros is not None
    scale = plain(o.scale)
    zero = torch.tensor([[8]]) if o.zero is None else plain(o.zero)
    out, zeros = len(o.mask), _positions(o.kept_zeros)
    masks, kept = [], []
    strip = max(1, (1 << 20) // o.columns // _BLOCK) * _BLOCK
    for first in range(0, out, strip):
        rows = slice(first, min(first + strip, out))
        words = plain_codes(o.mask, o.start, o.values, o.scale, o.zero, o.group, o.columns, rows)
        codes = unpack(words, 4, o.columns)
        grid = zero if len(zero) == 1 else zero[rows]
        mask = codes != grid.repeat_interleave(o.columns // grid.shape[1], 1)
        here = zeros[(zeros >= first * o.columns) & (zeros < rows.stop * o.columns)]
        mask.view(-1)[here - first * o.columns] = True
        masks.append(pack_mask(mask))
        kept.append(codes[mask].to(torch.uint8))
    return {
        "weight_mask": torch.cat(masks),
        "weight_packed": pack(torch.cat(kept).view(1, -1).int(), 4).view(-1),
        "weight_scale": scale.view(specs["weight_scale"].shape),
    }


def _positions(steps: Tensor) -> Tensor:
    """Weights ``row * in + column`` from the steps between them, int64, ascending."""
    return steps.long().cumsum(0)[steps != _SKIP] - 1


def _possible(o: MaskOperands) -> bool:
    if o.pattern or o.bits != 4 or o.mask.device.type != "cpu" or not native.load().vectorised:
        return False
    out = len(o.mask)
    return out % ROWS == 0 and out > 0 and o.columns % _UNIT == o.group % _UNIT == 0 and o.columns > 0
