"""2:4 weights of 4-bit codes with the words of sixteen rows side by side (:mod:`compress_kernels.ops.sixteen`).

The kernels choose columns of x by the places of what is kept, so ``mask`` holds the places as on disk, in as many bytes; the
upper bit of every code is turned, which makes it a signed number.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from ... import native
from ...decode import Rows
from ...layouts import Layout, SparseBitmask, SparseNM
from ...layouts.sparse import masks_by_byte
from ..dispatch import Room
from ..sixteen import ROWS, plain, plain_rows, woven
from . import operands, pairs
from .operands import MaskOperands

_UNIT = 32
"""Columns that are multiplied together; a group is a multiple of them."""

_TURN = -0x77777778
"""0x88888888 as int32."""


def interleave(o: MaskOperands, room: Room | None = None) -> MaskOperands:
    """The same weight, interleaved where this CPU has a kernel for it: 2:4, four bits, no zero points; or as :mod:`.pairs`.

    Args:
        o: mask, codes and scales as the other kernels read them.
        room: nobody else has the codes and scales of ``o``: they are changed, and the places go there.
    """
    if not o.pattern:
        return pairs.pair_up(o, room)
    if o.interleaved or not _possible(o):
        return o
    places = _places_by_mask()[o.mask.int()]
    if bool((places == 0).any()):
        return o  # not two of every four
    mask = woven(places.view(torch.int32)).view(torch.uint8)
    in_place = room is not None
    assert o.scale is not None
    values = woven(o.values, in_place=in_place).bitwise_xor_(_TURN)
    scale = woven(o.scale, in_place=in_place)
    return dataclasses.replace(
        o, mask=room(mask) if room else mask, values=values, scale=scale, interleaved=True
    )


def repacked(o: MaskOperands) -> tuple[str, ...]:
    """What need not be kept beside the operands; scales of a whole tensor are as they were."""
    if not o.interleaved or o.scale is None:
        return operands.repacked(o)
    scale = () if len(o.scale) == 1 else ("weight_scale",)
    return ("weight_indices" if o.pattern else "weight_mask", "weight_packed", *scale)


def remade(layout: Layout) -> tuple[str, ...]:
    """Suffixes of the tensors that :func:`interleave` does not change in place but makes anew."""
    if isinstance(layout, SparseNM):
        return ("weight_indices",)
    four_bits = isinstance(layout, SparseBitmask) and layout.grid is not None and layout.grid.bits == 4
    return ("weight_mask", "weight_packed") if four_bits else ()


def restore(layout: operands.SparseLayout, o: MaskOperands, shape: tuple[int, int]) -> dict[str, Tensor]:
    """The tensors on disk from the operands."""
    if not o.interleaved or o.scale is None:
        return operands.restore(layout, o, shape)
    if not o.pattern:
        return pairs.restore(o, layout.specs(shape))
    places, codes = plain_codes(o.mask, o.values)
    scale = plain(o.scale).view(layout.specs(shape)["weight_scale"].shape)
    return {"weight_indices": places, "weight_packed": codes, "weight_scale": scale}


def plain_codes(mask: Tensor, values: Tensor, rows: Rows = slice(None)) -> tuple[Tensor, Tensor]:
    """Places int32 ``[rows, words]`` and codes int32 ``[rows, words]`` as they lie on disk, of some rows."""
    return plain_rows(mask.view(torch.int32), rows), plain_rows(values, rows) ^ _TURN


def _possible(o: MaskOperands) -> bool:
    if o.bits != 4 or o.zero is not None or o.mask.device.type != "cpu" or not native.load().vectorised:
        return False
    out = len(o.mask)
    whole = o.columns % _UNIT == o.group % _UNIT == 0 and o.values.shape[1] * 16 == o.columns > 0
    return whole and out % ROWS == 0 and out > 0


@functools.cache
def _places_by_mask() -> Tensor:
    """uint8 ``[256]``: mask of eight columns → the places of two in every four of them; 0 where it keeps another number."""
    masks = masks_by_byte().long()
    made = torch.zeros(256, dtype=torch.uint8)
    made[masks] = torch.arange(256, dtype=torch.uint8)
    made[0] = 0  # of places that are not ascending
    return made
