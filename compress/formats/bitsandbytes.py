"""``bitsandbytes``: NF4 weights as transformers loads them where bitsandbytes is installed.

What its loader can and cannot do was read from, and is tested against, bitsandbytes 0.50 and transformers 5.23.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

from compress_kernels.layouts import (
    Layout,
    NormalFloat4,
    TensorSpec,
    layout_from_json,
)
from compress_kernels.layouts.dtypes import dtype_name

from compress.checkpoint.source import Source
from compress.errors import UserError
from compress.formats.packed_weight import PackedWeight
from compress.structures.base import CompressedWeight

from .base import Facts, Planned, TensorWriter, load_packed, rounded_inputs, save_packed, tensor_name

NAMES = {
    "weight_packed": "weight",
    "weight_absmax": "weight.absmax",
    "weight_quant_map": "weight.quant_map",
    "weight_state": "weight.quant_state.bitsandbytes__nf4",
}
"""What the layout's tensors are called there, behind the name of the weight."""

CPU_ROWS = 32
"""On CPUs with AVX-512 BF16 its layers repack so many output features together, and fail on any rest."""


class BitsAndBytes:
    """NF4, one weight per linear module."""

    name: ClassVar[str] = "bitsandbytes"

    def objection(self, weights: Sequence[Planned], facts: Facts) -> str | None:
        """Why bitsandbytes' form cannot hold these weights, in words; ``None`` if it can."""
        for weight in weights:
            if reason := _objection(weight):
                return f"{weight.view.name} {reason}"
        return rounded_inputs(weights, facts, "bitsandbytes' form")

    def stored(self, weight: Planned, facts: Facts) -> Layout:
        """The weight's own layout: the codes are stored as they are."""
        return weight.layout

    def specs(self, weight: Planned, facts: Facts) -> dict[str, TensorSpec]:
        """Full name → shape and dtype of the weight's tensors on disk."""
        specs = weight.layout.specs(weight.view.shape)
        return {tensor_name(weight.view, NAMES[suffix]): spec for suffix, spec in specs.items()}

    def save(
        self, weight: Planned, packed: CompressedWeight, writer: TensorWriter, facts: Facts
    ) -> CompressedWeight:
        """Write the packed tensors of a weight under their names; returns the weight as it was."""
        save_packed(weight, packed, writer, NAMES)
        return packed

    def load(self, weight: Planned, writer: TensorWriter, facts: Facts) -> CompressedWeight:
        """Read a packed weight back, as :meth:`save` wrote it."""
        return load_packed(weight, writer, NAMES)

    def quantization_config(self, weights: Sequence[Planned], facts: Facts) -> dict[str, Any]:
        """The settings by which transformers knows 4-bit weights of bitsandbytes, with the modules left dense."""
        dtype = dtype_name(facts.dtype)
        return {
            "quant_method": "bitsandbytes",
            "_load_in_4bit": True,
            "_load_in_8bit": False,
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_compute_dtype": dtype,
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": False,
            "llm_int8_enable_fp32_cpu_offload": False,
            "llm_int8_has_fp16_weight": False,
            "llm_int8_skip_modules": _skipped(weights, facts),
            "llm_int8_threshold": 6.0,
        }


def _objection(weight: Planned) -> str | None:
    view, layout = weight.view, weight.layout
    if not isinstance(layout, NormalFloat4):
        return f"is stored as {layout.name}, which bitsandbytes does not have"
    if view.kind == "expert":
        return "is an expert, which transformers keeps in one parameter that bitsandbytes passes over"
    if view.kind in ("embedding", "head"):
        return "lies outside of the blocks, where bitsandbytes is not asked for it"
    if view.shape[0] % CPU_ROWS:
        return f"has {view.shape[0]} outputs, where bitsandbytes' layers take multiples of {CPU_ROWS} on CPUs"
    if view.sources != (f"{view.name}.weight",):
        return "is a part of a fused tensor on disk, for which bitsandbytes has no name"
    return None


def _skipped(weights: Sequence[Planned], facts: Facts) -> list[str]:
    """Every linear module that is not compressed, by the model's name."""
    compressed = {weight.view.module for weight in weights}
    others = [view.module for view in facts.views if view.kind in ("linear", "conv1d", "head")]
    return [name for name in dict.fromkeys([*facts.linear_modules, *others]) if name not in compressed]


def read_bitsandbytes(source: Source) -> dict[str, PackedWeight]:
    """Name → weight of every one that bitsandbytes has packed to 4 bits in a checkpoint.

    Raises:
        UserError: the state beside a weight cannot be read, or is of a form that this program does not write.
    """
    result = {}
    state = f".{NAMES['weight_state']}"
    for tensor in source.headers:
        if not tensor.endswith(state):
            continue
        name = tensor.removesuffix(state)
        try:
            data = json.loads(bytes(source.read(tensor).tolist()))
            if "nested_offset" in data:
                raise ValueError("its scales are quantized once more, which is not read here")
            layout = layout_from_json({"name": data["quant_type"], "block": data["blocksize"], **data})
            shape = (int(data["shape"][0]), int(data["shape"][1]))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise UserError(f"{source.path}: {name} of bitsandbytes cannot be read: {error}") from error
        names = {suffix: f"{name}.{NAMES[suffix]}" for suffix in layout.specs(shape)}
        result[name] = PackedWeight(layout, shape, names)
    if not result and any(
        name.endswith((".SCB", ".quant_state.bitsandbytes__fp4")) for name in source.headers
    ):
        raise UserError(f"{source.path} holds INT8 or FP4 of bitsandbytes, which is not read here: NF4 is")
    return result
