"""Packed codes of a fixed table of values with a scale by group: signed powers of two, and RF8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..value_types import TABLE_BITS, table_values
from .base import Shape, TensorSpec
from .bits import pack, unpack, words_for
from .dtypes import dtype_from_name, dtype_name

_STRIP = 1 << 22
"""Values that are decoded together."""


@dataclass(frozen=True)
class TableCodes:
    """``table``: ``Θ = values[code] · scale``, the values of a kind in rising order, the largest 1.

    =============  ===========  =======================================================================================
    tensor         dtype        shape
    =============  ===========  =======================================================================================
    weight_packed  int32        ``[out, words]``: codes of ``bits`` bits, least significant first, as pack-quantized has
    weight_scale   scale_dtype  ``[out, in/group]``
    =============  ===========  =======================================================================================

    Values are multiplied by their scale in fp32 and rounded once.

    Attributes:
        kind: ``shift`` or ``rf8`` (:func:`compress_kernels.value_types.table_values`).
        bits: of a code; ``rf8`` has 8.
        group_size: columns that share a scale; must divide ``in``.
    """

    kind: str
    bits: int
    group_size: int
    scale_dtype: torch.dtype = torch.bfloat16

    name: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        if self.kind not in TABLE_BITS:
            raise ValueError(f"there is no table {self.kind!r}: known are {', '.join(TABLE_BITS)}")
        if self.bits not in TABLE_BITS[self.kind]:
            known = ", ".join(map(str, TABLE_BITS[self.kind]))
            raise ValueError(f"{self.kind} has {known} bits, not {self.bits}")

    def specs(self, shape: Shape) -> dict[str, TensorSpec]:
        """Codes in int32 words ``[out, words]``, scales ``[out, groups]``; raises ``ValueError`` where groups do not divide."""
        out, columns = shape
        if columns % self.group_size:
            raise ValueError(f"groups of {self.group_size} do not divide {columns} input features")
        return {
            "weight_packed": TensorSpec((out, words_for(columns, self.bits)), torch.int32),
            "weight_scale": TensorSpec((out, columns // self.group_size), self.scale_dtype),
        }

    def encode(self, codes: Tensor, scale: Tensor) -> dict[str, Tensor]:
        """Pack codes ``[out, in]`` with scales ``[out, in/group]``, values of ``scale_dtype``."""
        return {
            "weight_packed": pack(codes, self.bits),
            "weight_scale": scale.to(self.scale_dtype).contiguous(),
        }

    def codes(self, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """Codes int32 ``[out, in]``."""
        return unpack(tensors["weight_packed"], self.bits, shape[1])

    def decode(self, tensors: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """Values of the table times scales, ``[out, in]`` in ``dtype``, some rows at a time."""
        packed, scale = tensors["weight_packed"], tensors["weight_scale"]
        dense = torch.empty(shape, dtype=dtype, device=scale.device)
        step = max(1, _STRIP // max(1, shape[1]))
        for first in range(0, shape[0], step):
            rows = slice(first, first + step)
            dense[rows] = table_rows(packed, scale, self.kind, self.bits, shape[1], dtype, rows)
        return dense

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` reads back."""
        return {
            "name": self.name,
            "kind": self.kind,
            "bits": self.bits,
            "group": self.group_size,
            "scale_dtype": dtype_name(self.scale_dtype),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TableCodes:
        """The layout that :meth:`to_json` wrote."""
        return cls(data["kind"], data["bits"], data["group"], dtype_from_name(data["scale_dtype"]))


def table_rows(
    packed: Tensor,
    scale: Tensor,
    kind: str,
    bits: int,
    columns: int,
    dtype: torch.dtype,
    rows: slice | Tensor = slice(None),
) -> Tensor:
    """Rows of a weight: ``packed`` int32 ``[out, words]``, ``scale`` ``[out, groups]`` → ``[rows, in]`` in ``dtype``."""
    table = torch.tensor(table_values(kind, bits), device=packed.device)
    values = table[unpack(packed[rows], bits, columns)]
    factors = scale[rows].float().unsqueeze(-1)
    return (values.view(len(values), scale.shape[1], -1) * factors).view(len(values), columns).to(dtype)
