"""``mlx``: what mlx_lm opens: codes with a scale and a bias of the model's dtype, or small floats; embeddings and head too.

``config.json`` has mlx_lm's key ``quantization``, and the same once more as ``quantization_config``, as mlx_lm writes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from compress_kernels.layouts import AffineInteger, Layout, MLXFloat, PackedFloat, PackedInteger, TensorSpec
from compress_kernels.layouts.affine import BITS, GROUPS
from compress_kernels.layouts.integer import group_count
from compress_kernels.layouts.mlx_floats import TYPES

from compress.checkpoint.quantized.mlx import affine_of, floats_of
from compress.checkpoint.source import Source
from compress.formats.packed_weight import PackedWeight
from compress.recipe.registry import find
from compress.structures.base import CompressedWeight, Structure
from compress.structures.grids.floats import FloatGrid
from compress.structures.grids.integer import IntegerGrid

from .base import (
    Facts,
    Planned,
    TensorWriter,
    load_packed,
    rounded_inputs,
    save_packed,
    stands_alone,
    tensor_name,
)
from .recode import recoded
from .rope_settings import older_rope_settings

SUFFIXES = ("weight", "scales", "biases")
_FORM = "MLX's format"


class MLX:
    """Affine grids and small floats of linear layers, embeddings and head; layers may differ in bits and group size."""

    name: ClassVar[str] = "mlx"
    config_keys: ClassVar[tuple[str, ...]] = ("quantization", "quantization_config")

    def config_entries(self, config: Mapping[str, Any], quantization: Mapping[str, Any]) -> Mapping[str, Any]:
        """Rotary settings where mlx_lm looks for them."""
        return older_rope_settings(config)

    def objection(self, weights: Sequence[Planned], facts: Facts) -> str | None:
        """See :class:`~compress.formats.base.Exporter`."""
        for weight in weights:
            if reason := _objection(weight):
                return f"{weight.view.name} {reason}"
        return rounded_inputs(weights, facts, _FORM)

    def restricted(self, structure: Structure) -> Structure:
        """Asymmetric grids have a bias in the place of a whole zero point; NVFP4 has no scale of the whole weight."""
        if isinstance(structure, FloatGrid) and structure.type == "nvfp4":
            return replace(structure, fixed_outer=1.0)
        if type(structure) is not IntegerGrid or structure.symmetric or not structure.packed:
            return structure
        made: Structure = find("structure", "affine")(
            structure.bits, structure.group_size, False, structure.scales, scale_dtype=structure.scale_dtype
        )
        return made

    def stored(self, weight: Planned, facts: Facts) -> Layout:
        """See :class:`~compress.formats.base.Exporter`."""
        layout = weight.layout
        if isinstance(layout, AffineInteger):
            return layout
        if isinstance(layout, PackedFloat):
            return MLXFloat(layout.type)
        assert isinstance(layout, PackedInteger)
        group = _group(layout, weight.view.shape[1])
        assert group is not None
        return AffineInteger(layout.bits, group, layout.scale_dtype)

    def specs(self, weight: Planned, facts: Facts) -> dict[str, TensorSpec]:
        """See :class:`~compress.formats.base.Exporter`."""
        specs = self.stored(weight, facts).specs(weight.view.shape)
        return {tensor_name(weight.view, suffix): spec for suffix, spec in specs.items()}

    def save(
        self, weight: Planned, packed: CompressedWeight, writer: TensorWriter, facts: Facts
    ) -> CompressedWeight:
        """See :class:`~compress.formats.base.Exporter`."""
        found = recoded(weight.view.name, packed, self.stored(weight, facts))
        save_packed(weight, found, writer, {})
        return found

    def load(self, weight: Planned, writer: TensorWriter, facts: Facts) -> CompressedWeight:
        """See :class:`~compress.formats.base.Exporter`."""
        return load_packed(weight, writer, {}, self.stored(weight, facts))

    def quantization_config(self, weights: Sequence[Planned], facts: Facts) -> dict[str, Any]:
        """The scheme of most weights, and under their names those of the others."""
        schemes = {weight.view.name: _scheme(self.stored(weight, facts)) for weight in weights}
        ((most, _),) = Counter(schemes.values()).most_common(1)
        others = {name: _entry(scheme) for name, scheme in schemes.items() if scheme != most}
        return {**_entry(most), **others}


def _objection(weight: Planned) -> str | None:
    view, layout = weight.view, weight.layout
    if view.kind == "conv1d":
        return f"is a transposed Conv1D, for which {_FORM} has no packed layer: add it to 'ignore'"
    if view.kind == "expert":
        return f"is an expert, whose stack {_FORM} names differently in every model: add it to 'ignore'"
    if view.kind == "vision":
        return "reads images, which mlx_lm does not: add it to 'ignore'"
    if not stands_alone(view):
        return f"is a part of a fused tensor on disk, for which {_FORM} has no name"
    if isinstance(layout, AffineInteger):
        return None
    if isinstance(layout, PackedFloat) and layout.type in TYPES:
        return (
            None
            if view.shape[1] % 32 == 0
            else f"has {view.shape[1]} inputs, no multiple of the 32 that MLX asks for"
        )
    if not isinstance(layout, PackedInteger):
        return f"is stored as {layout.name}, which {_FORM} does not have: it holds packed integers"
    if layout.bits not in BITS:
        return f"has {layout.bits} bits, where {_FORM} packs 2, 3, 4, 5, 6 and 8"
    if _group(layout, view.shape[1]) is None:
        return f"has groups of {layout.group_size}, where {_FORM} has 32, 64 and 128"
    return None


def _group(layout: PackedInteger, columns: int) -> int | None:
    """The group size on disk: the largest that divides the layout's own, whose scales then are repeated."""
    width = columns // group_count(layout.group_size, columns)
    return next((size for size in reversed(GROUPS) if width % size == 0), None)


def _scheme(layout: Layout) -> tuple[int, int, str]:
    """Group size, bits and mode."""
    if isinstance(layout, MLXFloat):
        group = layout.plain.group_size
        assert isinstance(group, int)
        return group, layout.bits, layout.type
    assert isinstance(layout, AffineInteger)
    return layout.group_size, layout.bits, "affine"


def _entry(scheme: tuple[int, int, str]) -> dict[str, Any]:
    return {"group_size": scheme[0], "bits": scheme[1], "mode": scheme[2]}


def read_mlx_packed(source: Source, config: Mapping[str, Any]) -> dict[str, PackedWeight]:
    """Every ``NAME.weight`` that has scales beside it."""
    result = {}
    for tensor in source.headers:
        name = tensor.removesuffix(".scales")
        if name == tensor or f"{name}.weight" not in source.headers:
            continue
        if f"{name}.biases" in source.headers:
            layout, shape = affine_of(source, name, config)
            result[name] = PackedWeight(layout, shape, {suffix: f"{name}.{suffix}" for suffix in SUFFIXES})
            continue
        mode, shape = floats_of(source, name, config)
        stored, names = MLXFloat(mode), {suffix: f"{name}.{suffix}" for suffix in ("weight", "scales")}
        result[name] = PackedWeight(stored.plain, shape, names, stored=stored)
    return result
