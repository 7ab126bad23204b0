"""``fp8``: the plain FP8 configuration, which DeepSeek's checkpoints brought up; transformers, vLLM and SGLang read it.

Weights are E4M3 in blocks of 128 x 128 with scales in fp32; servers round inputs to E4M3 by token in groups of 128. A scale for
a whole tensor is left out: transformers calls it ``weight_scale_inv`` and vLLM ``weight_scale``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from compress_kernels.layouts import Layout, PackedFloat, ServedFloat, TensorSpec
from compress_kernels.layouts.floats import BLOCK

from compress.checkpoint.source import Source
from compress.formats.packed_weight import PackedWeight
from compress.structures.base import CompressedWeight, Structure

from . import served_floats
from .base import Facts, Planned, TensorWriter
from .left_dense import left_dense

_FORM = "the plain fp8 format"
_LAYOUT = ServedFloat("fp8", "fp8", "block")
_SCALE = ".weight_scale_inv"


class FP8:
    """FP8 in blocks of 128 x 128 of linear layers, inputs rounded by token in groups of 128."""

    name: ClassVar[str] = "fp8"

    def objection(self, weights: Sequence[Planned], facts: Facts) -> str | None:
        """See :class:`~compress.formats.base.Exporter`."""
        for weight in weights:
            if reason := served_floats.place_objection(weight, _FORM) or _scheme_objection(weight):
                return f"{weight.view.name} {reason}"
        if facts.kv_cache is not None:
            return f"the recipe stores keys and values as {facts.kv_cache.scheme.label}, which {_FORM} does not express"
        return None

    def restricted(self, structure: Structure) -> Structure:
        """See :class:`~compress.formats.base.RestrictsGrids`: scales are fp32."""
        return served_floats.restricted(structure)

    def stored(self, weight: Planned, facts: Facts) -> Layout:
        """See :class:`~compress.formats.base.Exporter`."""
        return _LAYOUT

    def specs(self, weight: Planned, facts: Facts) -> dict[str, TensorSpec]:
        """See :class:`~compress.formats.base.Exporter`."""
        return served_floats.specs(weight, _LAYOUT)

    def save(
        self, weight: Planned, packed: CompressedWeight, writer: TensorWriter, facts: Facts
    ) -> CompressedWeight:
        """See :class:`~compress.formats.base.Exporter`."""
        return served_floats.save(weight, packed, _LAYOUT, writer)

    def load(self, weight: Planned, writer: TensorWriter, facts: Facts) -> CompressedWeight:
        """See :class:`~compress.formats.base.Exporter`."""
        return served_floats.load(weight, _LAYOUT, writer)

    def quantization_config(self, weights: Sequence[Planned], facts: Facts) -> dict[str, Any]:
        """See :class:`~compress.formats.base.Exporter`."""
        return {
            "quant_method": self.name,
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [BLOCK, BLOCK],
            "modules_to_not_convert": left_dense(weights, facts),
        }


def _scheme_objection(weight: Planned) -> str | None:
    layout = weight.layout
    assert isinstance(layout, PackedFloat)
    if (layout.type, layout.group_size) != ("fp8", "block"):
        by = layout.group_size if layout.type == "fp8" else f"groups of {layout.group_size}"
        return f"is {layout.type} with scales by {by}, where {_FORM} holds fp8 in blocks of {BLOCK} x {BLOCK}: take fp8-block"
    if weight.activations != served_floats.BLOCK_INPUTS:
        return (
            f"takes {served_floats.inputs_label(weight.activations)}, where servers of {_FORM} round inputs to fp8 by "
            f"groups of {BLOCK}"
        )
    return None


def reads_packed(source: Source, config: Mapping[str, Any]) -> bool:
    """Whether every FP8 tensor of a checkpoint is a matrix in blocks of 128 x 128 that lies in one of ours."""
    if (
        list(config.get("weight_block_size") or ()) != [BLOCK, BLOCK]
        or config.get("scale_fmt", "float") != "float"
    ):
        return False
    if config.get("activation_scheme", "dynamic") != "dynamic":
        return False
    for name, info in source.headers.items():
        if info.dtype == torch.float8_e4m3fn:
            scale = source.headers.get(f"{name}_scale_inv")
            if scale is None or len(info.shape) != 2 or not name.endswith(".weight") or ".experts." in name:
                return False
            try:
                wanted = _LAYOUT.specs((info.shape[0], info.shape[1]))[_LAYOUT.scale_name]
            except ValueError:
                return False
            if (scale.shape, scale.dtype) != (wanted.shape, wanted.dtype):
                return False
    return True


def read_fp8_packed(source: Source, config: Mapping[str, Any]) -> dict[str, PackedWeight]:
    """Every ``NAME.weight`` with a ``NAME.weight_scale_inv`` beside it."""
    result = {}
    for tensor in source.headers:
        if not tensor.endswith(_SCALE):
            continue
        name = tensor.removesuffix(_SCALE)
        out, columns = source.headers[f"{name}.weight"].shape
        names = {suffix: f"{name}.{suffix}" for suffix in _LAYOUT.specs((out, columns))}
        result[name] = PackedWeight(
            _LAYOUT.plain, (out, columns), names, served_floats.BLOCK_INPUTS, stored=_LAYOUT
        )
    return result
