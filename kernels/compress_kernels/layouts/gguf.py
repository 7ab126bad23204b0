"""Quantized weights as GGUF stores them: rows of blocks, each block with its scales and its codes.

A value is ``(code − zero) · step + low`` for the affine types and ``table[code] · step`` for the types with a table. ``step``
and ``low`` belong to a sub-block of 16 or 32 columns. In a simple type they are stored as fp16; in a K-quant they are small
integers times an fp16 scale of the super-block of 256 columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..value_types import BLOCK_TYPES, BlockType
from .base import Shape, TensorSpec
from .gguf_bytes import PACKERS, FieldTensors, Plan

_STRIP = 1 << 22
"""Values that are packed or unpacked together."""


@dataclass(frozen=True)
class BlockFields:
    """What the blocks of a weight ``[out, in]`` hold, unpacked.

    Attributes:
        codes: int32 ``[out, in]``, 0 to ``top``.
        scale: fp32 ``[out, blocks]``: the fp16 (or E8M0) scale of each block.
        minimum: fp32 ``[out, blocks]``: the fp16 minimum of each block, or the scale of the integer minima.
        scales: int32 ``[out, groups]``: the integer scales of the sub-blocks.
        minima: int32 ``[out, groups]``: the integer minima of the sub-blocks.
    """

    codes: Tensor
    scale: Tensor
    minimum: Tensor | None = None
    scales: Tensor | None = None
    minima: Tensor | None = None


def group_steps(kind: BlockType, fields: BlockFields) -> tuple[Tensor, Tensor | None]:
    """Step and low end fp32 ``[out, groups]`` of every group, to the last bit as ggml computes them."""
    if kind.scales is None:
        return fields.scale, fields.minimum
    assert fields.scales is not None
    each = fields.scales.shape[1] // fields.scale.shape[1]
    step = fields.scale.repeat_interleave(each, 1) * fields.scales.float()
    if not kind.minimum:
        return step, None
    assert fields.minimum is not None and fields.minima is not None
    return step, -(fields.minimum.repeat_interleave(each, 1) * fields.minima.float())


def block_values(kind: BlockType, codes: Tensor, step: Tensor, low: Tensor | None) -> Tensor:
    """The values fp32 ``[out, in]`` of ``codes`` ``[out, in]`` under steps and low ends ``[out, groups]``."""
    grouped = codes.reshape(codes.shape[0], step.shape[1], -1)
    if kind.table:
        table = torch.tensor(kind.table, dtype=torch.float32, device=codes.device)
        values = table[grouped.long()] * step.unsqueeze(-1)
    else:
        values = (grouped.float() - kind.zero) * step.unsqueeze(-1)
    if low is not None:
        values = values + low.unsqueeze(-1)
    return values.reshape(codes.shape)


@dataclass(frozen=True)
class GGUFBlocks:
    """One tensor ``weight_blocks`` uint8 ``[out, in / block · bytes of a block]``, as it lies in a GGUF file."""

    type: str
    name: ClassVar[str] = "gguf"
    kind: BlockType = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.type not in BLOCK_TYPES:
            raise ValueError(f"unknown GGUF type {self.type!r}: {', '.join(BLOCK_TYPES)} are known")
        object.__setattr__(self, "kind", BLOCK_TYPES[self.type])

    def specs(self, shape: Shape) -> dict[str, TensorSpec]:
        """Blocks of GGUF, uint8 ``[out, bytes of a row]``; raises ``ValueError`` for rows that are no whole blocks."""
        kind, (out, columns) = self.kind, shape
        if columns % kind.block:
            other = f"; llama.cpp takes {kind.fallback} there" if kind.fallback else ""
            raise ValueError(
                f"a row of {columns} is no multiple of the {kind.block} columns of a {self.type} block{other}"
            )
        return {"weight_blocks": TensorSpec((out, columns // kind.block * kind.nbytes), torch.uint8)}

    def encode(self, fields: BlockFields) -> dict[str, Tensor]:
        """Pack the fields of a weight."""
        kind, plan = self.kind, self._plan()
        out, columns = fields.codes.shape
        blocks, each = columns // kind.block, kind.block // kind.group
        packed = []
        for rows in _strips(out, columns):
            parts: FieldTensors = {
                "codes": fields.codes[rows].reshape(-1, kind.block).to(torch.int32),
                "scale": fields.scale[rows].reshape(-1),
            }
            if fields.minimum is not None:
                parts["minimum"] = fields.minimum[rows].reshape(-1)
            for name in ("scales", "minima"):
                if (value := getattr(fields, name)) is not None:
                    parts[name] = value[rows].reshape(-1, each).to(torch.int32)
            packed.append(plan.pack(parts).view(-1, blocks * kind.nbytes))
        return {"weight_blocks": torch.cat(packed)}

    def fields(self, packed: Tensor, shape: Shape) -> BlockFields:
        """Invert :meth:`encode`: the fields of a ``weight_blocks`` tensor."""
        kind, plan = self.kind, self._plan()
        parts = plan.unpack(packed.reshape(-1, kind.nbytes))

        def rows(name: str) -> Tensor | None:
            return parts[name].reshape(shape[0], -1) if name in parts else None

        return BlockFields(
            parts["codes"].reshape(shape),
            parts["scale"].reshape(shape[0], -1),
            rows("minimum"),
            rows("scales"),
            rows("minima"),
        )

    def decode(self, tensors: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """The values of the blocks, ``[out, in]`` in ``dtype``, some rows at a time."""
        packed = tensors["weight_blocks"]
        dense = torch.empty(shape, dtype=dtype, device=packed.device)
        for rows in _strips(*shape):
            part = packed[rows]
            fields = self.fields(part, (part.shape[0], shape[1]))
            step, low = group_steps(self.kind, fields)
            dense[rows] = block_values(self.kind, fields.codes, step, low).to(dtype)
        return dense

    def to_json(self) -> dict[str, Any]:
        """Plain data that :meth:`from_json` reads back."""
        return {"name": self.name, "type": self.type}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GGUFBlocks:
        """The layout that :meth:`to_json` wrote."""
        return cls(data["type"])

    def _plan(self) -> Plan:
        return PACKERS[self.type]


def _strips(out: int, columns: int) -> list[slice]:
    rows = max(1, _STRIP // columns)
    return [slice(first, min(first + rows, out)) for first in range(0, out, rows)]
