"""``awq``: AWQ's checkpoints in the GEMM layout, 4 bits with zero points, as AutoAWQ wrote them.

GPTQModel, transformers with it, vLLM and mlx_lm read them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from compress_kernels.layouts import AWQInteger, Layout, PackedInteger, TensorSpec
from compress_kernels.layouts.integer import Group
from transformers.integrations.awq import AWQ_SCALES_MAPPINGS

from compress.checkpoint.source import Source
from compress.formats.packed_weight import PackedWeight
from compress.structures.base import CompressedWeight, Structure

from . import linears_alone
from .base import Facts, Planned, TensorWriter, load_packed, tensor_name
from .left_dense import left_dense

SUFFIXES = ("qweight", "qzeros", "scales")


class AWQ:
    """4-bit integer grids of linear layers, one group size for the whole model; symmetric ones have the zero point 8."""

    name: ClassVar[str] = "awq"

    def objection(self, weights: Sequence[Planned], facts: Facts) -> str | None:
        """See :class:`~compress.formats.base.Exporter`."""
        kind = facts.config.get("model_type")
        if kind in AWQ_SCALES_MAPPINGS:
            return (
                f"in models of type '{kind}' transformers puts scales of activations between the layers, which only AWQ's own "
                "quantizer knows"
            )
        return linears_alone.scheme_objection(weights, facts, "AWQ's format", (AWQInteger.bits,))

    def restricted(self, structure: Structure) -> Structure:
        """Scales are fp16."""
        return linears_alone.restricted(structure, lowest_zero=0)

    def stored(self, weight: Planned, facts: Facts) -> Layout:
        """See :class:`~compress.formats.base.Exporter`."""
        assert isinstance(weight.layout, PackedInteger)
        return AWQInteger(linears_alone.by_row(weight.layout))

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
        """See :class:`~compress.formats.base.Exporter`."""
        return {
            "quant_method": self.name,
            "version": "gemm",
            "bits": AWQInteger.bits,
            "group_size": linears_alone.group_of(self.stored(weights[0], facts)),
            "zero_point": True,
            "modules_to_not_convert": left_dense(weights, facts) or None,
        }


def read_awq_packed(source: Source, config: Mapping[str, Any]) -> dict[str, PackedWeight]:
    """Every ``NAME.qweight`` as a weight in packed integers, whose codes are packed anew when they are read."""
    result = {}
    for tensor in source.headers:
        if not tensor.endswith(".qweight"):
            continue
        name = tensor.removesuffix(".qweight")
        columns, scales = source.headers[tensor].shape[0], source.headers[f"{name}.scales"]
        groups, out = scales.shape
        group: Group = "channel" if groups == 1 else columns // groups
        layout = PackedInteger(AWQInteger.bits, group, False, scales.dtype)
        names = {suffix: f"{name}.{suffix}" for suffix in SUFFIXES}
        stored = AWQInteger(group, scales.dtype)
        result[name] = PackedWeight(layout, (out, columns), names, stored=stored)
    return result
