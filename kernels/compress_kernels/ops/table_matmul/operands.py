"""What the backends read: the tensors on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ...layouts import TableCodes, check


@dataclass(frozen=True)
class TableOperands:
    """Codes int32 ``[out, words]`` and scales ``[out, groups]``, and the kind, bits and columns of the weight."""

    packed: Tensor
    scale: Tensor
    kind: str
    bits: int
    columns: int


def operands(layout: TableCodes, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> TableOperands:
    """Check ``tensors`` against ``layout`` and ``shape`` ``[out, in]``; raises ``ValueError`` where they differ."""
    check(layout, tensors, shape)
    packed, scale = tensors["weight_packed"].contiguous(), tensors["weight_scale"].contiguous()
    return TableOperands(packed, scale, layout.kind, layout.bits, shape[1])
