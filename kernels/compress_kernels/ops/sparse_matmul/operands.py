"""What the sparse backends read: a bit mask, where each row's values start, and the values or codes on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...decode import mask_starts, row_counts
from ...layouts import check
from ...layouts.bits import pack
from ...layouts.dtypes import dtype_name
from ...layouts.sparse import SparseBitmask, SparseNM, index_bits, unpack_mask

SparseLayout = SparseBitmask | SparseNM


@dataclass(frozen=True)
class MaskOperands:
    """``mask`` uint8 ``[out, ⌈in/8⌉]``; ``start`` int64 ``[out + 1]`` (bit of ``values`` where each row begins).

    ``values`` are numbers of ``bits`` bits (then ``scale`` is ``None``) or codes in int32 words; ``scale`` and ``zero``
    ``[out or 1, groups]`` as in the packed product, ``group`` 0 where one group covers the row. ``pattern``: the mask
    was made of the places of N:M; ``interleaved``: as :mod:`.interleave` or, with a mask of no columns, :mod:`.pairs` has it.
    ``kept_zeros``: of pairs alone.
    """

    mask: Tensor
    start: Tensor
    values: Tensor
    bits: int
    scale: Tensor | None
    zero: Tensor | None
    group: int
    columns: int
    pattern: bool = False
    interleaved: bool = False
    kept_zeros: Tensor | None = None


def operands(layout: SparseLayout, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> MaskOperands:
    """Check ``tensors`` and bring them into one form; N:M places become a mask of the same size (2:4) or less.

    Raises ``ValueError`` where a tensor does not fit, a place is out of range, or the mask does not keep
    what is stored.
    """
    check_sparse(layout, tensors, shape)
    out, columns = shape
    bits = 8 * layout.dtype.itemsize if layout.grid is None else layout.grid.bits
    values = tensors["weight_values" if layout.grid is None else "weight_packed"].contiguous()
    if isinstance(layout, SparseBitmask):
        mask = tensors["weight_mask"].contiguous()
        start = mask_starts(mask, bits)
    else:
        mask = layout.packed_mask(tensors, shape)
        row = values.shape[1] * values.element_size() * 8
        start = torch.arange(out + 1, dtype=torch.int64, device=mask.device) * row
    scale, zero, group = parameters(layout, tensors, shape)
    pattern = isinstance(layout, SparseNM)
    return MaskOperands(mask, start, values, bits, scale, zero, group, columns, pattern)


def unread_by_kernels(layout: SparseLayout) -> str | None:
    """Why the kernels do not read a layout, though the reference does, or ``None`` if they do."""
    if layout.grid is None and layout.dtype != torch.bfloat16:
        return f"its values are {dtype_name(layout.dtype)}, and the kernels read bfloat16"
    return None


def repacked(o: MaskOperands) -> tuple[str, ...]:
    """The places of N:M need not be kept beside the mask that took theirs."""
    return ("weight_indices",) if o.pattern else ()


def restore(layout: SparseLayout, o: MaskOperands, shape: tuple[int, int]) -> dict[str, Tensor]:
    """The places of N:M from the mask, some rows at a time."""
    if not isinstance(layout, SparseNM):
        return {}
    strips = []
    for mask in o.mask.split(max(1, (1 << 20) // shape[1])):
        kept = unpack_mask(mask, shape[1]).view(mask.shape[0], -1, layout.m)
        places = kept.nonzero()[:, 2].view(mask.shape[0], -1)
        strips.append(pack(places.to(torch.int32), index_bits(layout.m)))
    return {"weight_indices": torch.cat(strips)}


def check_sparse(layout: SparseLayout, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> None:
    """The tensors' shapes and dtypes, their device, the declared shape, and the mask against the values."""
    check(layout, tensors, shape)
    devices = {tensor.device for name, tensor in tensors.items() if name != "weight_shape"}
    if len(devices) > 1:
        raise ValueError(
            f"the tensors of one sparse weight are on different devices: {sorted(map(str, devices))}"
        )
    if (declared := tensors["weight_shape"].tolist()) != list(shape):
        raise ValueError(f"weight_shape says {declared} where the layer has {list(shape)}")
    if isinstance(layout, SparseBitmask):
        mask = tensors["weight_mask"]
        kept = int(row_counts(mask).sum())
        if kept != layout.nnz:
            raise ValueError(f"weight_mask keeps {kept} weights where {layout.nnz} are stored")
        if shape[1] % 8 and bool((mask[:, -1] >> (shape[1] % 8)).any()):
            raise ValueError("weight_mask keeps columns beyond the last one")


def parameters(
    layout: SparseLayout, tensors: Mapping[str, Tensor], shape: tuple[int, int]
) -> tuple[Tensor | None, Tensor | None, int]:
    """Scale, zero (uint8, ``None`` if symmetric) and group of the grid; nothing without a grid."""
    grid = layout.grid
    if grid is None:
        return None, None, 0
    scale, zero = grid.parameters(tensors, shape)
    group = 0 if isinstance(grid.group_size, str) else grid.group_size
    return scale.contiguous(), None if grid.symmetric else zero.to(torch.uint8).contiguous(), group
