"""Packed rows in the order in which the AVX-512 kernels of a few tokens read them: the words of sixteen rows side by side.

Word ``j`` of the rows ``16 b … 16 b + 15`` follows word ``j - 1`` of the same rows, and so do their scales and zero points. A
vector then holds one row a lane, and a product reads one stream of whole cache lines. Bytes and shapes are those on disk.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from ... import native
from ...decode import Rows, rows_of
from .operands import PackedOperands

ROWS = 16
"""Rows whose words lie side by side."""

_COLUMNS = {2: 16, 3: 32, 4: 8, 8: 4}
"""Width → columns that are unpacked together; a group is a multiple of them."""


def interleave(o: PackedOperands, *, in_place: bool = False) -> PackedOperands:
    """The same weight, interleaved where this CPU has kernels for it and the shape allows it.

    Args:
        o: codes, scales and zero points as they lie on disk.
        in_place: change the tensors of ``o`` in place of copying them.
    """
    if o.interleaved or not _possible(o):
        return o
    codes, scale = _woven(o.codes, in_place), _woven(o.scale, in_place)
    zero = None if o.zero is None else _woven(o.zero, in_place)
    return dataclasses.replace(o, codes=codes, scale=scale, zero=zero, interleaved=True)


def plain(tensor: Tensor) -> Tensor:
    """A copy of an interleaved tensor ``[out, …]`` as it lies on disk; one row, for a whole tensor, is itself."""
    return tensor if len(tensor) == 1 else _blocks(tensor).transpose(1, 2).reshape(tensor.shape)


def plain_rows(tensor: Tensor, rows: Rows) -> Tensor:
    """Some rows of an interleaved tensor ``[out, …]``, as they lie on disk."""
    if len(tensor) == 1:
        return rows_of(tensor, rows)
    if isinstance(rows, Tensor):
        return _blocks(tensor)[rows // ROWS, :, rows % ROWS]
    first, last, _ = rows.indices(len(tensor))
    begin = first // ROWS * ROWS
    return plain(tensor[begin : -(-last // ROWS) * ROWS])[first - begin : last - begin]


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


def _woven(tensor: Tensor, in_place: bool) -> Tensor:
    if len(tensor) == 1:
        return tensor
    woven = tensor.view(-1, ROWS, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
    return tensor.copy_(woven) if in_place else woven


def _blocks(tensor: Tensor) -> Tensor:
    """``[out / 16, width, 16]``."""
    return tensor.view(-1, tensor.shape[1], ROWS)


__all__ = ["ROWS", "interleave", "plain", "plain_rows"]
