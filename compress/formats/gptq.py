"""``gptq``: GPTQ's classic checkpoints, which GPTQModel, transformers with it, vLLM and all that is older read.

No act-order (``desc_act: false``). Symmetric grids are written in the first version of the format (``gptq``), which stores
zero points less one. Asymmetric ones are written in the second (``gptq_v2``), which stores them as they are: GPTQModel
refuses asymmetric checkpoints of the first version that it did not write itself, and in that one there is no zero point of 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, ClassVar

import torch
from compress_kernels.layouts import GPTQInteger, Layout, PackedInteger, TensorSpec
from compress_kernels.layouts.gptq import group_of_inputs
from compress_kernels.layouts.integer import Group

from compress.checkpoint.quantized.gptq import columns_and_bits
from compress.checkpoint.source import Source
from compress.formats.packed_weight import PackedWeight
from compress.structures.base import CompressedWeight, Structure

from . import linears_alone
from .base import Facts, Planned, TensorWriter, load_packed, tensor_name

BITS = (2, 3, 4, 8)
SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")


class GPTQ:
    """Integer grids of linear layers, one scheme for the whole model."""

    name: ClassVar[str] = "gptq"

    def objection(self, weights: Sequence[Planned], facts: Facts) -> str | None:
        """See :class:`~compress.formats.base.Exporter`."""
        return linears_alone.scheme_objection(weights, facts, "GPTQ's format", BITS)

    def restricted(self, structure: Structure) -> Structure:
        """Scales are fp16."""
        return linears_alone.restricted(structure, lowest_zero=0)

    def stored(self, weight: Planned, facts: Facts) -> Layout:
        """See :class:`~compress.formats.base.Exporter`."""
        layout = weight.layout
        assert isinstance(layout, PackedInteger)
        return GPTQInteger(layout.bits, linears_alone.by_row(layout), layout.symmetric, layout.symmetric)

    def specs(self, weight: Planned, facts: Facts) -> dict[str, TensorSpec]:
        """See :class:`~compress.formats.base.Exporter`."""
        specs = self.stored(weight, facts).specs(weight.view.shape)
        return {tensor_name(weight.view, suffix): spec for suffix, spec in specs.items()}

    def save(
        self, weight: Planned, packed: CompressedWeight, writer: TensorWriter, facts: Facts
    ) -> CompressedWeight:
        """See :class:`~compress.formats.base.Exporter`."""
        return linears_alone.save(weight, packed, self.stored(weight, facts), writer)

    def load(self, weight: Planned, writer: TensorWriter, facts: Facts) -> CompressedWeight:
        """See :class:`~compress.formats.base.Exporter`."""
        return load_packed(weight, writer, {}, self.stored(weight, facts))

    def quantization_config(self, weights: Sequence[Planned], facts: Facts) -> dict[str, Any]:
        """Where only some layers are compressed, transformers is told which those are, GPTQModel and vLLM which are not."""
        layout = self.stored(weights[0], facts)
        assert isinstance(layout, GPTQInteger)
        config: dict[str, Any] = {
            "quant_method": self.name,
            "checkpoint_format": "gptq" if layout.less_one else "gptq_v2",
            "bits": layout.bits,
            "group_size": linears_alone.group_of(layout),
            "sym": layout.symmetric,
            "desc_act": False,
            "static_groups": False,
            "true_sequential": True,
            "damp_percent": 0.01,
            "lm_head": False,
            "pack_dtype": "int32",
            "meta": {"quantizer": [f"compress:{metadata.version('compress-llm')}"]},
        }
        if dense := linears_alone.dense_in_blocks(weights, facts):
            config["dynamic"] = {f"-:^{re.escape(name)}$": {} for name in dense}
            config["modules_in_block_to_quantize"] = [linears_alone.names_of(weights)]
        return config


def read_gptq_packed(source: Source, config: Mapping[str, Any]) -> dict[str, PackedWeight]:
    """Every ``NAME.qweight`` as a weight in packed integers, whose codes are packed anew when they are read.

    Raises:
        UserError: bits that are not read here.
    """
    result = {}
    for tensor in source.headers:
        if not tensor.endswith(".qweight"):
            continue
        name = tensor.removesuffix(".qweight")
        words, out = source.headers[tensor].shape
        columns, bits = columns_and_bits(source, name, words, config)
        scales = source.headers[f"{name}.scales"]
        group: Group = "channel" if scales.shape[0] == 1 else columns // scales.shape[0]
        symmetric = config.get("sym") is True
        less_one = (config.get("checkpoint_format") or config.get("format") or "gptq") == "gptq"
        stored = GPTQInteger(bits, group, symmetric, less_one, scales.dtype)
        names = {suffix: f"{name}.{suffix}" for suffix in SUFFIXES if f"{name}.{suffix}" in source.headers}
        layout = PackedInteger(bits, group, symmetric, scales.dtype)
        result[name] = PackedWeight(layout, (out, columns), names, stored=stored)
    return result


def has_runs_of_inputs(source: Source) -> bool:
    """Whether every group of a GPTQ checkpoint is a run of inputs (no act-order), by what is stored."""
    for name, info in source.headers.items():
        if not name.endswith(".g_idx"):
            continue
        scales = source.headers.get(f"{name.removesuffix('.g_idx')}.scales")
        if scales is None or info.numel % scales.shape[0]:
            return False
        if not torch.equal(source.read(name).int(), group_of_inputs(info.numel, scales.shape[0])):
            return False
    return True
