"""``modelopt``: the checkpoints of NVIDIA's ModelOpt, which TensorRT-LLM, vLLM and SGLang read.

``config.json`` and ``hf_quant_config.json`` both name the algorithm; transformers opens neither.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any, ClassVar

import torch
from compress_kernels.activations import GLOBAL_SUFFIX, SCALE_SUFFIX, ActivationScheme
from compress_kernels.layouts import Layout, PackedFloat, ServedFloat, TensorSpec
from compress_kernels.layouts.floats import FloatGroup
from torch import Tensor

from compress.checkpoint.source import Source
from compress.errors import UserError
from compress.formats.packed_weight import PackedWeight
from compress.structures.base import CompressedWeight, Structure

from . import served_floats
from .base import Facts, Planned, TensorWriter, tensor_name
from .input_activations import arguments_of
from .left_dense import left_dense
from .weight_arguments import arguments_of_weights

_FORM = "ModelOpt's format"
SETTINGS = "hf_quant_config.json"

_STATIC = ActivationScheme(8, "float", strategy="tensor", dynamic=False)
_TOKEN = ActivationScheme(8, "float", strategy="token")
_MX = ActivationScheme(8, "float", strategy="group", group_size=32, scale_type="e8m0")
_NV = ActivationScheme(4, "float", strategy="tensor_group", group_size=16)

ALGORITHMS: dict[str, tuple[str, FloatGroup, ActivationScheme | None]] = {
    "FP8": ("fp8", "tensor", _STATIC),
    "FP8_PER_CHANNEL_PER_TOKEN": ("fp8", "channel", _TOKEN),
    "FP8_PB_WO": ("fp8", "block", served_floats.BLOCK_INPUTS),
    "MXFP8": ("mxfp8", 32, _MX),
    "NVFP4": ("nvfp4", 16, _NV),
    "W4A16_NVFP4": ("nvfp4", 16, None),
}
"""``quant_algo`` → type and scales of the weights, and how servers round inputs."""


class ModelOpt:
    """FP8, MXFP8 and NVFP4 of linear layers, one scheme for the whole model; keys and values in FP8."""

    name: ClassVar[str] = "modelopt"

    def objection(self, weights: Sequence[Planned], facts: Facts) -> str | None:
        """See :class:`~compress.formats.base.Exporter`."""
        for weight in weights:
            if reason := served_floats.place_objection(weight, _FORM) or _scheme_objection(weight):
                return f"{weight.view.name} {reason}"
        if reason := served_floats.several_schemes(weights, _FORM):
            return reason
        cache = facts.kv_cache
        if cache is not None and (cache.scheme.type, cache.scheme.strategy) != ("float", "tensor"):
            return (
                f"the recipe stores keys and values as {cache.scheme.label}, where {_FORM} has fp8 per tensor"
            )
        return None

    def restricted(self, structure: Structure) -> Structure:
        """See :class:`~compress.formats.base.RestrictsGrids`: scales of FP8 are fp32."""
        return served_floats.restricted(structure)

    def stored(self, weight: Planned, facts: Facts) -> Layout:
        """See :class:`~compress.formats.base.Exporter`."""
        return served_floats.stored(weight, self.name)

    def specs(self, weight: Planned, facts: Facts) -> dict[str, TensorSpec]:
        """See :class:`~compress.formats.base.Exporter`."""
        found = served_floats.specs(weight, self.stored(weight, facts))
        if weight.activations is not None and weight.activations.stored:
            found[tensor_name(weight.view, SCALE_SUFFIX)] = TensorSpec((), torch.float32)
        return found

    def save(
        self, weight: Planned, packed: CompressedWeight, writer: TensorWriter, facts: Facts
    ) -> CompressedWeight:
        """See :class:`~compress.formats.base.Exporter`."""
        return served_floats.save(weight, packed, self.stored(weight, facts), writer)

    def load(self, weight: Planned, writer: TensorWriter, facts: Facts) -> CompressedWeight:
        """See :class:`~compress.formats.base.Exporter`."""
        return served_floats.load(weight, self.stored(weight, facts), writer)

    def put_inputs(self, weight: Planned, calibrated: Mapping[str, Tensor], writer: TensorWriter) -> None:
        """See :class:`~compress.formats.base.StoresInputs`."""
        for suffix, tensor in calibrated.items():
            scale = tensor.reshape(()).to(torch.float32)
            stored = scale.reciprocal() if suffix == GLOBAL_SUFFIX else scale
            writer.put({tensor_name(weight.view, SCALE_SUFFIX): stored})

    def read_inputs(self, weight: Planned, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """See :class:`~compress.formats.base.StoresInputs`."""
        stored = weight.activations.stored if weight.activations is not None else {}
        return {s: _input(s, read(tensor_name(weight.view, SCALE_SUFFIX))) for s in stored}

    def quantization_config(self, weights: Sequence[Planned], facts: Facts) -> dict[str, Any]:
        """See :class:`~compress.formats.base.Exporter`."""
        layout, activations = weights[0].layout, weights[0].activations
        assert isinstance(layout, PackedFloat)
        group = {
            "weights": arguments_of_weights(layout),
            "input_activations": None if activations is None else arguments_of(activations),
            "targets": ["Linear"],
        }
        return {
            "quant_method": self.name,
            "quant_algo": algorithm_of(layout, activations),
            **_group_size(layout),
            "kv_cache_scheme": None if facts.kv_cache is None else arguments_of(facts.kv_cache.scheme),
            "config_groups": {"group_0": group},
            "ignore": left_dense(weights, facts),
            "producer": _producer(),
        }

    def files(self, weights: Sequence[Planned], facts: Facts) -> dict[str, str]:
        """See :class:`~compress.formats.base.AddsFiles`: the file that TensorRT-LLM reads."""
        layout = weights[0].layout
        assert isinstance(layout, PackedFloat)
        settings = {
            "quant_algo": algorithm_of(layout, weights[0].activations),
            "kv_cache_quant_algo": None if facts.kv_cache is None else "FP8",
            **_group_size(layout),
            "exclude_modules": left_dense(weights, facts),
        }
        return {SETTINGS: json.dumps({"producer": _producer(), "quantization": settings}, indent=2) + "\n"}


def algorithm_of(layout: PackedFloat, activations: ActivationScheme | None) -> str | None:
    """ModelOpt's name of a scheme; ``None`` where it has none."""
    wanted = (layout.type, layout.group_size, activations)
    return next((name for name, scheme in ALGORITHMS.items() if scheme == wanted), None)


def _scheme_objection(weight: Planned) -> str | None:
    layout = weight.layout
    assert isinstance(layout, PackedFloat)
    if algorithm_of(layout, weight.activations) is not None:
        return None
    inputs = served_floats.inputs_label(weight.activations)
    by = layout.group_size if layout.type == "fp8" else f"groups of {layout.group_size}"
    known = ", ".join(ALGORITHMS)
    return f"is {layout.type} with scales by {by} and takes {inputs}, which is none of {_FORM} that servers read: {known}"


def _group_size(layout: PackedFloat) -> dict[str, int]:
    return {"group_size": layout.group_size} if isinstance(layout.group_size, int) else {}


def _producer() -> dict[str, str]:
    return {"name": "compress", "version": metadata.version("compress-llm")}


def _input(suffix: str, stored: Tensor) -> Tensor:
    return stored.reshape(1).reciprocal() if suffix == GLOBAL_SUFFIX else stored.reshape(1)


def settings_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a configuration of ModelOpt says, whether it is of ``config.json`` or of its own file."""
    nested = config.get("quantization")
    return nested if isinstance(nested, dict) else config


def modelopt_cache(config: Mapping[str, Any]) -> ActivationScheme | None:
    """How a checkpoint wants keys and values stored; ``None`` where it leaves that to the server.

    Raises:
        ValueError: a scheme other than FP8 per tensor.
    """
    settings = settings_of(config)
    named, scheme = settings.get("kv_cache_quant_algo"), settings.get("kv_cache_scheme")
    if named is None and scheme is None:
        return None
    wanted = scheme or {"type": "float", "num_bits": 8 if str(named).upper() == "FP8" else 0}
    if (wanted.get("type"), wanted.get("num_bits")) != ("float", 8):
        raise ValueError(f"{named or scheme} is none that is read here: FP8 is")
    return _STATIC


def reads_packed(source: Source, config: Mapping[str, Any]) -> bool:
    """Whether every quantized tensor of a checkpoint lies in the layout of its one algorithm."""
    algorithm = ALGORITHMS.get(str(settings_of(config).get("quant_algo", "")).upper())
    if algorithm is None or any(".experts." in name for name in source.headers):
        return False
    layout = ServedFloat("modelopt", algorithm[0], algorithm[1])
    for tensor in source.headers:
        name = tensor.removesuffix(".weight_scale")
        if name == tensor:
            continue
        weight = source.headers.get(f"{name}.weight")
        if weight is None or len(weight.shape) != 2:
            return False
        try:
            specs = layout.specs(_shape(weight.shape, layout))
        except ValueError:
            return False
        found = {suffix: source.headers.get(f"{name}.{suffix}") for suffix in specs}
        if any(
            info is None or (info.shape, info.dtype) != (specs[suffix].shape, specs[suffix].dtype)
            for suffix, info in found.items()
        ):
            return False
    return True


def read_modelopt_packed(source: Source, config: Mapping[str, Any]) -> dict[str, PackedWeight]:
    """Every ``NAME.weight`` with a ``NAME.weight_scale`` beside it.

    Raises:
        UserError: an algorithm that is not read here.
    """
    named = str(settings_of(config).get("quant_algo", "")).upper()
    if named not in ALGORITHMS:
        raise UserError(
            f"{source.path} is ModelOpt's '{named}', which is not read here: {', '.join(ALGORITHMS)} are"
        )
    kind, group, activations = ALGORITHMS[named]
    layout, result = ServedFloat("modelopt", kind, group), {}
    for tensor in source.headers:
        name = tensor.removesuffix(".weight_scale")
        if name == tensor:
            continue
        shape = _shape(source.headers[f"{name}.weight"].shape, layout)
        names = {suffix: f"{name}.{suffix}" for suffix in layout.specs(shape)}
        names |= dict.fromkeys(activations.stored if activations else (), f"{name}.{SCALE_SUFFIX}")
        result[name] = PackedWeight(layout.plain, shape, names, activations, stored=layout)
    return result


def _shape(stored: Sequence[int], layout: ServedFloat) -> tuple[int, int]:
    return stored[0], stored[1] * 8 // layout.bits if layout.bits < 8 else stored[1]
