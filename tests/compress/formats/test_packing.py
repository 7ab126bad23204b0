"""Our packing against the compressed-tensors library, both ways."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from compress_kernels.layouts import PackedInteger, PlainInteger
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme

from compress.formats.compressed_tensors import _group

Group = int | Literal["channel", "tensor"]
CASES = [
    (shape, group)
    for shape, group in [
        ((8, 64), 16),
        ((5, 48), 24),
        ((33, 70), 10),
        ((7, 33), "channel"),
        ((1, 5), "channel"),
        ((6, 40), "tensor"),
        ((64, 1), "channel"),
        ((35, 96), 96),
    ]
]


def _scheme(layout: PackedInteger | PlainInteger) -> QuantizationScheme:
    return QuantizationScheme.model_validate(_group(layout, None, ["Linear"]))


def _weight(shape: tuple[int, int], layout: PackedInteger | PlainInteger) -> tuple[torch.Tensor, ...]:
    """Random codes, scales and zero points; the extremes of both occur."""
    generator = torch.Generator().manual_seed(layout.bits)
    top = (1 << layout.bits) - 1
    codes = torch.randint(0, top + 1, shape, generator=generator, dtype=torch.int32)
    codes.view(-1)[0], codes.view(-1)[-1] = 0, top
    scales = layout.specs(shape)["weight_scale"].shape
    rows, groups = (1, 1) if len(scales) == 1 else scales
    scale = (torch.rand(rows, groups, generator=generator) + 0.5).to(torch.bfloat16)
    zero = torch.randint(0, top + 1, (rows, groups), generator=generator, dtype=torch.int32)
    return codes, scale, zero


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("shape", "group"), CASES)
def test_the_library_unpacks_what_we_pack(
    bits: int, symmetric: bool, shape: tuple[int, int], group: Group
) -> None:
    layout = PackedInteger(bits, group, symmetric)
    codes, scale, zero = _weight(shape, layout)
    tensors = layout.encode(codes, scale, None if symmetric else zero)
    library: Any = BaseCompressor.get_value_from_registry("pack-quantized")
    found = library.decompress(dict(tensors), _scheme(layout))["weight"]
    assert torch.equal(found, layout.decode(tensors, shape, torch.bfloat16))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("shape", "group"), CASES)
def test_we_unpack_what_the_library_packs(
    bits: int, symmetric: bool, shape: tuple[int, int], group: Group
) -> None:
    layout = PackedInteger(bits, group, symmetric)
    codes, scale, zero = _weight(shape, layout)
    ours = layout.encode(codes, scale, None if symmetric else zero)
    state = {"weight": layout.decode(ours, shape, torch.float64), "weight_scale": ours["weight_scale"]}
    if not symmetric:
        signed = (zero - (1 << (bits - 1))).to(torch.int8)
        state["weight_zero_point"] = signed.reshape(ours["weight_scale"].shape)
    library: Any = BaseCompressor.get_value_from_registry("pack-quantized")
    theirs = library.compress(state, _scheme(layout))
    assert set(theirs) == set(layout.specs(shape))
    for suffix, spec in layout.specs(shape).items():
        if suffix == "weight_zero_point" and group == "tensor":
            continue  # the library leaves this one unpacked, in whatever integer it was given
        assert theirs[suffix].dtype == spec.dtype, suffix
        assert torch.equal(theirs[suffix], ours[suffix]), suffix


@pytest.mark.parametrize(("shape", "group"), CASES)
def test_plain_integers_are_the_librarys(shape: tuple[int, int], group: Group) -> None:
    layout = PlainInteger(8, group)
    codes, scale, _ = _weight(shape, layout)
    tensors = layout.encode(codes, scale)
    library: Any = BaseCompressor.get_value_from_registry("int-quantized")
    found = library.decompress(dict(tensors), _scheme(layout))["weight"]
    assert torch.equal(found, layout.decode(tensors, shape, torch.bfloat16))
    dense = layout.decode(tensors, shape, torch.float64)
    theirs = library.compress({"weight": dense, "weight_scale": tensors["weight_scale"]}, _scheme(layout))
    assert torch.equal(theirs["weight"], tensors["weight"])
