"""Tensors with the numbers of sixteen rows side by side: the order in which the AVX-512 kernels of a few tokens read weights.

Number ``j`` of the rows ``16 b … 16 b + 15`` follows number ``j - 1`` of the same rows. A vector then holds one row a lane, and
a product reads one stream of whole cache lines. Bytes and shapes are those on disk; one row, for a whole tensor, is itself.
"""

from __future__ import annotations

from torch import Tensor

from ..decode import Rows, rows_of

ROWS = 16
"""Rows whose numbers lie side by side."""


def woven(tensor: Tensor, *, in_place: bool = False) -> Tensor:
    """``[out, …]`` on disk, ``out`` a multiple of sixteen, in this order: a copy, or the changed tensor itself."""
    if len(tensor) == 1:
        return tensor
    if tensor.shape[1] == 1:  # in order already; what is made below would share its memory
        return tensor if in_place else tensor.clone()
    made = tensor.view(-1, ROWS, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
    return tensor.copy_(made) if in_place else made


def plain(tensor: Tensor) -> Tensor:
    """The inverse of :func:`woven`, a copy."""
    return tensor if len(tensor) == 1 else _blocks(tensor).transpose(1, 2).reshape(tensor.shape)


def plain_rows(tensor: Tensor, rows: Rows) -> Tensor:
    """Some rows as they lie on disk."""
    if len(tensor) == 1:
        return rows_of(tensor, rows)
    if isinstance(rows, Tensor):
        return _blocks(tensor)[rows // ROWS, :, rows % ROWS]
    first, last, _ = rows.indices(len(tensor))
    begin = first // ROWS * ROWS
    return plain(tensor[begin : -(-last // ROWS) * ROWS])[first - begin : last - begin]


def _blocks(tensor: Tensor) -> Tensor:
    """``[out / 16, width, 16]``."""
    return tensor.view(-1, tensor.shape[1], ROWS)
