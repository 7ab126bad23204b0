"""Small floats: what the library compressed-tensors unpacks from our bytes, and packs from the same values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compress_kernels.layouts import FLOAT_TYPES, PackedFloat, check, layout_from_json
from compress_kernels.layouts.floats import BLOCK, FloatGroup, by_row, magnitudes, rising_values
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import preset_name_to_scheme
from torch import Tensor

LAYOUTS = [
    PackedFloat("fp8", "channel"),
    PackedFloat("fp8", "tensor"),
    PackedFloat("fp8", "block"),
    PackedFloat.of("mxfp8"),
    PackedFloat.of("mxfp4"),
    PackedFloat.of("nvfp4"),
]
SCHEMES: dict[tuple[str, FloatGroup], tuple[str, str]] = {
    ("fp8", "channel"): ("FP8_DYNAMIC", "float-quantized"),
    ("fp8", "tensor"): ("FP8", "float-quantized"),
    ("fp8", "block"): ("FP8_BLOCK", "float-quantized"),
    ("mxfp8", 32): ("MXFP8A16", "mxfp8-quantized"),
    ("mxfp4", 32): ("MXFP4A16", "mxfp4-pack-quantized"),
    ("nvfp4", 16): ("NVFP4A16", "nvfp4-pack-quantized"),
}
SHAPE = (200, 256)


def made(
    layout: PackedFloat, shape: tuple[int, int] = SHAPE
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Random codes, scales, the outer scale, and the tensors that hold them."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, len(rising_values(layout.kind.element)), shape, generator=generator)
    grid = layout.scale_grid(shape)
    random = torch.rand(grid, generator=generator)
    if layout.kind.scale == "e8m0":
        scale = torch.exp2((random * 40).round() - 30)
    elif layout.kind.scale == "e4m3":
        scale = (random * 400 + 1).to(torch.float8_e4m3fn).float()
    else:
        scale = (random + 0.5).to(layout.scale_dtype).float()
    outer = torch.tensor([1733.0])
    return codes, scale, outer, layout.encode(codes, scale, outer)


def library(layout: PackedFloat) -> tuple[Any, Any]:
    scheme, form = SCHEMES[layout.type, layout.group_size]
    return BaseCompressor.get_value_from_registry(form), preset_name_to_scheme(scheme, ["Linear"])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_values_are_elements_times_scales(layout: PackedFloat) -> None:
    codes, scale, outer, tensors = made(layout)
    check(layout, tensors, SHAPE)
    values = torch.tensor(rising_values(layout.kind.element), dtype=torch.float64)[codes]
    effective = (scale / outer if layout.kind.scale == "e4m3" else scale).double()
    wide = by_row(effective, layout.group_size, SHAPE[0])
    wide = wide.repeat_interleave(SHAPE[1] // wide.shape[1], 1)
    expected = values * wide
    torch.testing.assert_close(layout.decode(tensors, SHAPE, torch.float64), expected, rtol=1e-7, atol=0)
    part = layout.rows(tensors, SHAPE, torch.float32, slice(100, 150))
    assert torch.equal(part, layout.decode(tensors, SHAPE, torch.float32)[100:150])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_compressed_tensors_decompresses_to_the_same_bits(layout: PackedFloat) -> None:
    *_, tensors = made(layout)
    compressor, scheme = library(layout)
    theirs = compressor.decompress(dict(tensors), scheme)["weight"]
    assert theirs.dtype == torch.bfloat16
    assert torch.equal(theirs, layout.decode(tensors, SHAPE, torch.bfloat16))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_compressed_tensors_packs_the_same_bytes(layout: PackedFloat) -> None:
    _, scale, outer, tensors = made(layout)
    compressor, scheme = library(layout)
    stored = scale.to(layout.scale_dtype) if layout.kind.scale is None else scale
    given = {"weight": layout.decode(tensors, SHAPE, torch.float32), "weight_scale": stored}
    if layout.group_size == "tensor":
        given["weight_scale"] = stored.reshape(1)
    if layout.kind.scale == "e4m3":
        given["weight_global_scale"] = outer
    packed = compressor.compress(given, scheme)
    assert packed.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert packed[name].dtype == tensor.dtype
        assert torch.equal(packed[name].float(), tensor.float()), name


def test_every_power_of_two_is_exact() -> None:
    layout = PackedFloat.of("mxfp8")
    octets = torch.arange(255, dtype=torch.uint8).view(255, 1)
    scales = layout.scales({"weight_scale": octets}, (255, 32))
    assert torch.equal(
        scales.view(-1).double(), torch.tensor([2.0 ** (n - 127) for n in range(255)]).double()
    )


def test_e4m3_has_126_positive_values_up_to_448() -> None:
    positive = magnitudes("e4m3")
    assert (len(positive), positive[1], positive[-1]) == (127, 2**-9, 448.0)
    assert list(rising_values("e2m1")) == sorted(set(rising_values("e2m1")))


def test_what_a_format_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="groups of 16 do not divide 40 input features, as nvfp4 needs"):
        PackedFloat.of("nvfp4").specs((8, 40))
    with pytest.raises(ValueError, match=f"blocks of {BLOCK} x {BLOCK} do not divide 192 input features"):
        PackedFloat("fp8", "block").specs((8, 192))
    with pytest.raises(ValueError, match="mxfp4 has groups of 32, not 16"):
        PackedFloat("mxfp4", 16)
    with pytest.raises(ValueError, match="by channel, tensor or block, not 64"):
        PackedFloat("fp8", 64)
    with pytest.raises(ValueError, match="known are fp8, mxfp8, mxfp4, nvfp4"):
        PackedFloat("fp6")


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_description_of_a_layout_comes_back(layout: PackedFloat) -> None:
    assert layout_from_json(layout.to_json()) == layout
    assert layout.kind is FLOAT_TYPES[layout.type]
