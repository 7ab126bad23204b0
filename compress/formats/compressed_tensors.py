"""``compressed-tensors``: what transformers and vLLM load without us.

What its loaders can and cannot do was read from, and is tested against, compressed-tensors 0.20 and transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from compress_kernels.activations import ActivationScheme
from compress_kernels.layouts import Layout, PackedFloat, PackedInteger, PlainInteger, TensorSpec

from compress.structures.base import CompressedWeight

from .another_dtype import another_dtype_notes, in_bf16, needs_another_dtype
from .base import (
    Facts,
    Planned,
    TensorWriter,
    input_specs,
    load_packed,
    save_packed,
    stands_alone,
    tensor_name,
)
from .input_activations import arguments_of
from .left_dense import left_dense
from .weight_arguments import arguments_of_weights, format_of

VERSION = "0.20.0"
_OUTSIDE = ("embedding", "head")
# transformers finds the scheme of the experts, which are no modules there, by this word in a regular expression.
_EXPERTS = r"re:.*\.experts\.\d+\..*"


@dataclass(frozen=True)
class CompressedTensors:
    """Packed or plain integers and small floats, one tensor group per module.

    Attributes:
        dequantize: let transformers decode the weights while it loads them, for models whose code does not run on packed
            modules. Servers do not read this key and keep the weights packed.
    """

    name: ClassVar[str] = "compressed-tensors"
    dequantize: bool = False

    def decoding(self) -> CompressedTensors:
        """As :class:`~compress.formats.base.Decoding` says."""
        return replace(self, dequantize=True)

    def objection(self, weights: Sequence[Planned], facts: Facts) -> str | None:
        """Why compressed-tensors cannot hold these weights, in words; ``None`` if it can."""
        for weight in weights:
            if reason := _weight_objection(weight):
                return f"{weight.view.name} {reason}"
            if weight.view.kind == "embedding" and (reason := _embedding_objection(weight, facts)):
                return f"{weight.view.name} {reason}"
        return (
            _experts_objection(weights, facts)
            or _mixture_objection(weights, self.dequantize)
            or _cache_objection(facts)
        )

    def stored(self, weight: Planned, facts: Facts) -> Layout:
        """The weight's own layout: the codes are stored as they are."""
        return weight.layout

    def specs(self, weight: Planned, facts: Facts) -> dict[str, TensorSpec]:
        """Full name → shape and dtype of the weight's tensors on disk, scales of its inputs among them."""
        specs = weight.layout.specs(weight.view.shape) | input_specs(weight, facts)
        return {tensor_name(weight.view, suffix): spec for suffix, spec in specs.items()}

    def save(
        self, weight: Planned, packed: CompressedWeight, writer: TensorWriter, facts: Facts
    ) -> CompressedWeight:
        """Write the packed tensors of a weight under their names; returns the weight as it was."""
        save_packed(weight, packed, writer, {})
        return packed

    def load(self, weight: Planned, writer: TensorWriter, facts: Facts) -> CompressedWeight:
        """Read a packed weight back, as :meth:`save` wrote it."""
        return load_packed(weight, writer, {})

    def quantization_config(self, weights: Sequence[Planned], facts: Facts) -> dict[str, Any]:
        """One group of settings for each scheme, with the modules it holds for, and the modules left dense."""
        by_scheme: dict[_Scheme, list[Planned]] = {}
        for weight in weights:
            by_scheme.setdefault(_scheme(weight), []).append(weight)
        groups = {
            f"group_{i}": _group(*scheme, _targets(members, len(by_scheme) == 1))
            for i, (scheme, members) in enumerate(by_scheme.items())
        }
        formats = sorted({str(group["format"]) for group in groups.values()})
        config: dict[str, Any] = {
            "quant_method": "compressed-tensors",
            "version": VERSION,
            "format": formats[0] if len(formats) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "global_compression_ratio": None,
            "kv_cache_scheme": None if facts.kv_cache is None else arguments_of(facts.kv_cache.scheme),
            "config_groups": groups,
            "ignore": left_dense(weights, facts),
        }
        zero_points = any(_asymmetric(layout) for layout, _ in by_scheme)
        if self.dequantize or zero_points or needs_another_dtype(weights, facts):
            # The module that transformers builds to hold packed zero points has the wrong shape for them: they load
            # only by way of dequantizing. vLLM does not read this key and keeps the weights packed.
            config["dequantize"] = True
        return config

    def config_entries(self, config: Mapping[str, Any], quantization: Mapping[str, Any]) -> Mapping[str, Any]:
        """The dtype in which loaders can multiply the weights."""
        return in_bf16(config, quantization)

    def notes(self, weights: Sequence[Planned], facts: Facts) -> tuple[str, ...]:
        """A sentence where that is not the model's own."""
        return () if self.dequantize else another_dtype_notes(weights, facts)


_Scheme = tuple[Layout, ActivationScheme | None]


def _scheme(weight: Planned) -> _Scheme:
    """What a config group says: the layout of its weights and how their inputs are rounded."""
    return weight.layout, weight.activations


def _weight_objection(weight: Planned) -> str | None:
    view, layout = weight.view, weight.layout
    if not isinstance(layout, PackedInteger | PlainInteger | PackedFloat):
        return f"is stored as {layout.name}, which compressed-tensors does not have"
    if view.kind == "conv1d":
        return "is a transposed Conv1D, which compressed-tensors loaders pass over"
    if not stands_alone(view):
        return "is a part of a fused tensor on disk, for which compressed-tensors has no name"
    if (
        weight.activations is not None
        and weight.activations.scale_type is not None
        and not _microscaled(layout)
    ):
        return "takes MX inputs beside weights without MX scales, which no server computes"
    if weight.activations is not None and weight.activations.hadamard is not None:
        return "has inputs that are rotated while it runs, which transformers would leave as they are without a word"
    if _nvfp4_inputs(weight) and not (isinstance(layout, PackedFloat) and layout.kind.scale == "e4m3"):
        return "takes NVFP4 inputs beside other weights, which no server computes"
    if view.kind == "expert" and weight.activations is not None:
        return "is an expert with rounded inputs, which transformers would leave as they are"
    if view.kind == "expert":
        if isinstance(layout, PlainInteger):
            return "is an expert of plain integers, which transformers cannot load"
        if isinstance(layout, PackedFloat) and layout.kind.scale == "e4m3":
            return "is an expert of NVFP4, whose scale of the whole weight transformers drops"
        if _asymmetric(layout):
            return "is an asymmetric expert, whose zero points transformers drops"
    return None


def _nvfp4_inputs(weight: Planned) -> bool:
    return weight.activations is not None and weight.activations.strategy == "tensor_group"


def _microscaled(layout: Layout) -> bool:
    return isinstance(layout, PackedFloat) and layout.kind.scale == "e8m0"


def _embedding_objection(weight: Planned, facts: Facts) -> str | None:
    """Loaders read a packed embedding that stands alone: its rows are looked up, and no head multiplies by it."""
    view, layout = weight.view, weight.layout
    if view.tied:
        return f"is tied to {view.tied[0]}, which loaders do not share packed"
    if view.shape[0] < facts.config.get("vocab_size", 0):
        return "is a table of positions, which servers do not read packed"
    if not isinstance(layout, PackedInteger) or not layout.symmetric:
        return "is an embedding, of which servers read symmetric packed integers alone"
    return None


def _experts_objection(weights: Sequence[Planned], facts: Facts) -> str | None:
    """transformers decodes all experts of a model, by one scheme, as soon as anything in it is compressed."""
    experts = {weight.view.name for weight in weights if weight.view.kind == "expert"}
    dense = [view.name for view in facts.views if view.kind == "expert" and view.name not in experts]
    if dense and weights:
        return f"{dense[0]} is an expert left dense, which transformers cannot load beside compressed weights"
    if len({_scheme(weight) for weight in weights if weight.view.kind == "expert"}) > 1:
        return "experts of several schemes, of which transformers reads one"
    return None


def _cache_objection(facts: Facts) -> str | None:
    """compressed-tensors knows attention by its class and its projections."""
    for one in facts.kv_cache.attention if facts.kv_cache is not None else ():
        if not one.named_attention:
            return (
                f"{one.module} stores keys and values, but compressed-tensors does not take it for attention"
            )
    return None


def _mixture_objection(weights: Sequence[Planned], dequantize: bool) -> str | None:
    """Where transformers decodes while loading, as it does to read zero points, it decodes all layers by the first scheme."""
    layers = {_scheme(weight) for weight in weights if weight.view.kind != "expert"}
    if len(layers) > 1 and any(_asymmetric(layout) for layout, _ in layers):
        return "several schemes of which one is asymmetric, of which transformers reads one"
    if len(layers) > 1 and dequantize:
        return "several schemes, of which transformers reads one while it decodes"
    return None


def _asymmetric(layout: Layout) -> bool:
    return not getattr(layout, "symmetric", True)


def _targets(members: Sequence[Planned], alone: bool) -> list[str]:
    """A class where there is one scheme (the ignore list does the rest); where there are several, exact names, both the
    checkpoint's and the model's: loaders differ in which they know. What lies outside the blocks is always named: servers have
    classes of their own for it."""
    named = [w for w in members if w.view.kind in _OUTSIDE or not alone]
    names = [name for w in named if w.view.kind != "expert" for name in (w.view.name, w.view.module)]
    if alone:
        return ["Linear", *dict.fromkeys(names)]
    experts = [_EXPERTS] if any(weight.view.kind == "expert" for weight in members) else []
    return [*experts, *dict.fromkeys(names)]


def _group(layout: Layout, activations: ActivationScheme | None, targets: list[str]) -> dict[str, Any]:
    return {
        "targets": targets,
        "weights": arguments_of_weights(layout),
        "input_activations": None if activations is None else arguments_of(activations),
        "output_activations": None,
        "format": format_of(layout, rounds_inputs=activations is not None),
    }
