"""What the reference reads: the tensors on disk, by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...decode import ALL, Rows
from ...layouts import FLOAT_TYPES, PackedFloat, check
from ...layouts.floats import FloatGroup, by_row


@dataclass(frozen=True)
class FloatOperands:
    """``elements`` fp8 ``[out, in]`` or uint8 ``[out, in/2]``, the tensor on disk; ``scale`` fp32 ``[scale rows, groups]``: by
    what elements are multiplied; ``type`` and ``group`` as :class:`PackedFloat` has them."""

    elements: Tensor
    scale: Tensor
    type: str
    group: str


def operands(layout: PackedFloat, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> FloatOperands:
    """Check ``tensors`` against ``layout`` and ``shape`` ``[out, in]``; raises ``ValueError`` where they differ."""
    check(layout, tensors, shape)
    elements = tensors["weight" if layout.kind.bits == 8 else "weight_packed"]
    return FloatOperands(elements, layout.scales(tensors, shape), layout.type, str(layout.group_size))


def float_rows(
    elements: Tensor,
    scale: Tensor,
    type: str,
    group: str,
    dtype: torch.dtype,
    rows: Rows = ALL,
) -> Tensor:
    """Rows ``[rows, in]`` of the weight that :class:`FloatOperands` holds."""
    fixed: FloatGroup = FLOAT_TYPES[type].group or group  # type: ignore[assignment]
    layout = PackedFloat(type, fixed)
    spread = by_row(scale, fixed, elements.shape[0])[rows]
    values = layout.elements({"weight" if layout.kind.bits == 8 else "weight_packed": elements}, rows)
    return (values.view(len(values), spread.shape[1], -1) * spread.unsqueeze(-1)).view(values.shape).to(dtype)
