"""The packed layouts: pure functions between a weight and the tensors that store it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..value_types import BLOCK_TYPES, FLOAT_TYPES
from .affine import AffineInteger
from .awq import AWQInteger
from .base import Layout, Shape, TensorSpec, check, nbytes
from .dense import Dense
from .floats import PackedFloat
from .gguf import GGUFBlocks
from .gptq import GPTQInteger
from .integer import PackedInteger, PlainInteger
from .low_rank import Columns, LowRank, SumOf
from .mlx_floats import MLXFloat
from .nf4 import NormalFloat4
from .served_floats import ServedFloat
from .sparse import SparseBitmask, SparseNM
from .value_table import TableCodes

_LAYOUTS = {
    layout.name: layout
    for layout in (
        PackedInteger,
        PlainInteger,
        Dense,
        NormalFloat4,
        SparseBitmask,
        SparseNM,
        GGUFBlocks,
        PackedFloat,
        GPTQInteger,
        AWQInteger,
        AffineInteger,
        MLXFloat,
        ServedFloat,
        TableCodes,
    )
}
_NESTED = {layout.name: layout for layout in (LowRank, Columns, SumOf)}


def layout_from_json(data: Mapping[str, Any]) -> Layout:
    """The layout that ``Layout.to_json`` described; raises ``ValueError`` for a name nobody knows."""
    name = data.get("name")
    if name in _NESTED:
        return _NESTED[name].from_json(data, layout_from_json)
    if name not in _LAYOUTS:
        known = ", ".join(sorted([*_LAYOUTS, *_NESTED]))
        raise ValueError(f"unknown layout {name!r}: this version reads {known}")
    return _LAYOUTS[name].from_json(data)


__all__ = [
    "BLOCK_TYPES",
    "FLOAT_TYPES",
    "AWQInteger",
    "AffineInteger",
    "Columns",
    "Dense",
    "GGUFBlocks",
    "GPTQInteger",
    "Layout",
    "LowRank",
    "MLXFloat",
    "NormalFloat4",
    "PackedFloat",
    "PackedInteger",
    "PlainInteger",
    "ServedFloat",
    "Shape",
    "SparseBitmask",
    "SparseNM",
    "SumOf",
    "TableCodes",
    "TensorSpec",
    "check",
    "layout_from_json",
    "nbytes",
]
