"""Packed rows with the words, scales and zero points of sixteen rows side by side (:mod:`compress_kernels.ops.sixteen`)."""

from __future__ import annotations

import dataclasses

from ... import native
from ..dispatch import Room
from ..sixteen import ROWS, woven
from .operands import PackedOperands

_COLUMNS = {2: 16, 3: 32, 4: 8, 8: 4}
"""Width → columns that are unpacked together; a group is a multiple of them."""


def interleave(o: PackedOperands, room: Room | None = None) -> PackedOperands:
    """The same weight, interleaved where this CPU has kernels for it and the shape allows it.

    Args:
        o: codes, scales and zero points as they lie on disk.
        room: nobody else has the tensors of ``o``: they are changed.
    """
    if o.interleaved or not _possible(o):
        return o
    in_place = room is not None
    codes, scale = woven(o.codes, in_place=in_place), woven(o.scale, in_place=in_place)
    zero = None if o.zero is None else woven(o.zero, in_place=in_place)
    return dataclasses.replace(o, codes=codes, scale=scale, zero=zero, interleaved=True)


def _possible(o: PackedOperands) -> bool:
    if o.codes.device.type != "cpu" or not native.load().vectorised or o.bits not in _COLUMNS:
        return False
    unit, (out, words) = _COLUMNS[o.bits], o.codes.shape
    return (
        out % ROWS == 0
        and out > 0
        and o.columns % unit == o.group % unit == 0
        and words * 32 == o.columns * o.bits
    )
