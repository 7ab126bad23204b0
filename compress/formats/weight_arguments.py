"""What a config group of compressed-tensors says of its weights: a layout as quantization arguments, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from compress_kernels.layouts import FLOAT_TYPES, Layout, PackedFloat, PackedInteger, PlainInteger
from compress_kernels.layouts.floats import BLOCK

Arguments = dict[str, Any]

_FORMATS = {
    "mxfp8": "mxfp8-quantized",
    "mxfp4": "mxfp4-pack-quantized",
    "nvfp4": "nvfp4-pack-quantized",
}
_WITH_INPUTS, _WEIGHTS_ALONE = "float-quantized", "naive-quantized"
FLOAT_FORMATS = frozenset({*_FORMATS.values(), _WITH_INPUTS, _WEIGHTS_ALONE})
"""The formats whose weights are floats."""
DECODED_TO_BF16 = frozenset(_FORMATS.values())
"""Those that compressed-tensors decodes to bf16 whatever dtype the model has."""
_SCALE_DTYPES = {"e8m0": torch.uint8, "e4m3": torch.float8_e4m3fn}


def format_of(layout: Layout, rounds_inputs: bool) -> str:
    """The name that compressed-tensors gives the format of a layout."""
    if not isinstance(layout, PackedFloat):
        return layout.name
    return _FORMATS.get(layout.type) or (_WITH_INPUTS if rounds_inputs else _WEIGHTS_ALONE)


def arguments_of_weights(layout: Layout) -> Arguments:
    """The quantization arguments of a layout."""
    if isinstance(layout, PackedFloat):
        return _floats(layout)
    assert isinstance(layout, PackedInteger | PlainInteger)
    strategy = layout.group_size if isinstance(layout.group_size, str) else "group"
    return {
        "num_bits": layout.bits,
        "type": "int",
        "symmetric": getattr(layout, "symmetric", True),
        "strategy": strategy,
        "group_size": layout.group_size if strategy == "group" else None,
        "dynamic": False,
    }


def _floats(layout: PackedFloat) -> Arguments:
    grouped = isinstance(layout.group_size, int)
    outer = layout.kind.scale == "e4m3"
    arguments: Arguments = {
        "num_bits": layout.kind.bits,
        "type": "float",
        "symmetric": True,
        "strategy": "tensor_group" if outer else "group" if grouped else layout.group_size,
        "group_size": layout.group_size if grouped else None,
        "dynamic": False,
    }
    if layout.group_size == "block":
        arguments["block_structure"] = [BLOCK, BLOCK]
    if layout.kind.scale is not None:
        arguments["scale_dtype"] = str(_SCALE_DTYPES[layout.kind.scale])
    return arguments


def float_layout_of(
    arguments: Mapping[str, Any], scale_dtype: torch.dtype | None = None
) -> PackedFloat | None:
    """The layout that arguments describe, or ``None`` where it is none of ours.

    Args:
        arguments: of a config group's weights.
        scale_dtype: of the scales on disk, where they are known; fp8's are bf16 otherwise.
    """
    bits, size = arguments.get("num_bits", 8), arguments.get("group_size")
    strategy: Any = arguments.get("strategy")
    strategy = strategy or ("group" if size else "tensor")
    if arguments.get("type") != "float" or not arguments.get("symmetric", True):
        return None
    if strategy in ("group", "tensor_group"):
        wanted = (bits, size, strategy == "tensor_group")
        known = {(k.bits, k.group, k.scale == "e4m3"): name for name, k in FLOAT_TYPES.items()}
        name = known.get(wanted)
        stored = _SCALE_DTYPES.get(str(FLOAT_TYPES[name].scale)) if name else None
        fits = name is not None and scale_dtype in (None, stored)
        return PackedFloat.of(name) if name is not None and fits else None
    if bits != 8 or strategy not in ("channel", "tensor", "block"):
        return None
    if strategy == "block" and list(arguments.get("block_structure") or ()) != [BLOCK, BLOCK]:
        return None
    return PackedFloat.of("fp8", strategy, scale_dtype or torch.bfloat16)
