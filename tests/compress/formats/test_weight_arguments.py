"""Quantization arguments: those of the presets of compressed-tensors, and back to the layouts."""

from __future__ import annotations

import pytest
import torch
from compress_kernels.layouts import Layout, PackedFloat, PackedInteger, PlainInteger
from compressed_tensors.compressors.format import infer_module_format
from compressed_tensors.quantization import QuantizationArgs, preset_name_to_scheme

from compress.formats.weight_arguments import FLOAT_FORMATS, arguments_of_weights, float_layout_of, format_of

PRESETS: dict[str, Layout] = {
    "FP8": PackedFloat("fp8", "tensor"),
    "FP8_DYNAMIC": PackedFloat("fp8", "channel"),
    "FP8_BLOCK": PackedFloat("fp8", "block"),
    "NVFP4A16": PackedFloat.of("nvfp4"),
    "NVFP4": PackedFloat.of("nvfp4"),
    "MXFP4A16": PackedFloat.of("mxfp4"),
    "MXFP4": PackedFloat.of("mxfp4"),
    "MXFP8A16": PackedFloat.of("mxfp8"),
    "MXFP8": PackedFloat.of("mxfp8"),
    "W4A16": PackedInteger(4, 128),
    "W4A16_ASYM": PackedInteger(4, 128, False),
    "W8A8": PlainInteger(8, "channel"),
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_written_as_the_library_has_it(name: str) -> None:
    layout, scheme = PRESETS[name], preset_name_to_scheme(name, ["Linear"])
    ours = QuantizationArgs(**arguments_of_weights(layout))
    # Symmetric weights have no zero points; the library writes no dtype for them.
    assert ours.model_dump() == scheme.weights.model_dump(exclude={"zp_dtype"})
    inputs = scheme.input_activations is not None
    assert format_of(layout, inputs) == infer_module_format(torch.nn.Linear, scheme).value


@pytest.mark.parametrize(
    "name", [name for name, layout in PRESETS.items() if isinstance(layout, PackedFloat)]
)
def test_a_layout_comes_back_from_its_arguments(name: str) -> None:
    layout = PRESETS[name]
    assert isinstance(layout, PackedFloat)
    assert float_layout_of(arguments_of_weights(layout)) == layout
    assert format_of(layout, False) in FLOAT_FORMATS


def test_weights_alone_are_naive() -> None:
    scheme = preset_name_to_scheme("FP8_DYNAMIC", ["Linear"])
    scheme.input_activations = None
    assert (
        format_of(PackedFloat("fp8", "channel"), False) == infer_module_format(torch.nn.Linear, scheme).value
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"num_bits": 6},
        {"group_size": 64},
        {"symmetric": False},
        {"type": "int"},
        {"strategy": "block", "group_size": None, "block_structure": [64, 64]},
    ],
)
def test_what_is_no_layout_of_ours(changes: dict[str, object]) -> None:
    assert float_layout_of({**arguments_of_weights(PackedFloat.of("mxfp8")), **changes}) is None


def test_scales_in_another_dtype_are_another_format() -> None:
    groups = arguments_of_weights(PackedFloat.of("mxfp8"))
    assert float_layout_of(groups, torch.bfloat16) is None
    channel = arguments_of_weights(PackedFloat("fp8", "channel"))
    assert float_layout_of(channel, torch.float32) == PackedFloat("fp8", "channel", torch.float32)
