"""Integer weights: decoding by hand, zero points packed along the outputs, and the bytes of every grouping."""

from __future__ import annotations

import pytest
import torch
from compress_kernels.layouts import PackedInteger, PlainInteger
from compress_kernels.layouts.integer import Group, dequantize, group_count, scale_shape
from torch import Tensor

SHAPE = (9, 24)
GROUPS: list[Group] = [8, 24, "channel", "tensor"]


def parts(layout: PackedInteger | PlainInteger) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = 1 if layout.group_size == "tensor" else SHAPE[0]
    groups = group_count(layout.group_size, SHAPE[1])
    codes = torch.randint(0, 1 << layout.bits, SHAPE, generator=generator)
    scale = (torch.rand(rows, groups, generator=generator) + 0.5).to(layout.scale_dtype)
    scale[:, ::2] *= -1  # a symmetric grid's scale may have either sign
    return codes, scale, torch.randint(0, 1 << layout.bits, (rows, groups), generator=generator)


def slow_decode(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """``(q − z) · s`` element by element in float64."""
    out = torch.empty(codes.shape, dtype=torch.float64)
    width = codes.shape[1] // scale.shape[1]
    for i in range(codes.shape[0]):
        for j in range(codes.shape[1]):
            row = 0 if scale.shape[0] == 1 else i
            out[i, j] = (int(codes[i, j]) - int(zero[row, j // width])) * float(scale[row, j // width])
    return out


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_decoding_by_hand(bits: int, group: Group, symmetric: bool) -> None:
    layout = PackedInteger(bits, group, symmetric, torch.float32)
    codes, scale, zero = parts(layout)
    if symmetric:
        zero = torch.full_like(zero, 1 << (bits - 1))
    tensors = layout.encode(codes, scale, None if symmetric else zero)
    assert torch.equal(layout.decode(tensors, SHAPE, torch.float64), slow_decode(codes, scale, zero))


@pytest.mark.parametrize("group", GROUPS)
def test_codes_scales_and_zeros_come_back(group: Group) -> None:
    layout = PackedInteger(3, group, False)
    codes, scale, zero = parts(layout)
    found = layout.codes(layout.encode(codes, scale, zero), SHAPE)
    for given, back in zip((codes, scale, zero), found, strict=True):
        assert torch.equal(back.to(given.dtype), given)


@pytest.mark.parametrize("group", GROUPS)
def test_tensors_are_those_that_were_declared(group: Group) -> None:
    for layout in (PackedInteger(3, group, False), PackedInteger(4, group), PlainInteger(8, group)):
        codes, scale, zero = parts(layout)
        tensors = layout.encode(codes, scale, zero)
        declared = layout.specs(SHAPE)
        assert tensors.keys() == declared.keys()
        for name, spec in declared.items():
            assert (tuple(tensors[name].shape), tensors[name].dtype) == (spec.shape, spec.dtype), name
            assert tensors[name].is_contiguous()


def test_zero_points_are_packed_along_the_outputs() -> None:
    layout = PackedInteger(4, 8, False)
    codes, scale, zero = parts(layout)
    stored = layout.encode(codes, scale, zero)["weight_zero_point"]
    assert stored.shape == (2, 3)  # nine rows of four bits: two words
    word = sum(int(zero[row, 1]) << (4 * row) for row in range(8))
    assert int(stored[0, 1]) & 0xFFFFFFFF == word


def test_an_asymmetric_weight_needs_zero_points() -> None:
    layout = PackedInteger(4, 8, False)
    codes, scale, _ = parts(layout)
    with pytest.raises(ValueError, match="needs zero points"):
        layout.encode(codes, scale)


def test_plain_integers_are_signed() -> None:
    layout = PlainInteger(8, "channel", torch.float32)
    codes, scale, _ = parts(layout)
    tensors = layout.encode(codes, scale)
    assert torch.equal(tensors["weight"].to(torch.int64), codes - 128)
    zero = torch.full((SHAPE[0], 1), 128)
    assert torch.equal(layout.decode(tensors, SHAPE, torch.float64), slow_decode(codes, scale, zero))


@pytest.mark.parametrize(
    ("group", "count", "shape"), [(8, 3, (9, 3)), ("channel", 1, (9, 1)), ("tensor", 1, (1,))]
)
def test_groups(group: Group, count: int, shape: tuple[int, ...]) -> None:
    assert group_count(group, SHAPE[1]) == count
    assert scale_shape(group, SHAPE) == shape


def test_dequantizing_rounds_once_in_its_dtype() -> None:
    codes, scale, zero = torch.tensor([[3, 0]]), torch.tensor([[1.5]]), torch.tensor([[1]])
    assert dequantize(codes, scale, zero, torch.bfloat16).tolist() == [[3.0, -1.5]]
    assert dequantize(codes, scale, zero, torch.bfloat16).dtype == torch.bfloat16
