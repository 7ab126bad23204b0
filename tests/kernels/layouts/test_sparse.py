"""Sparse weights: masks bit by bit, places of N:M, and what is not kept decodes to zero."""

from __future__ import annotations

import pytest
import torch
from compress_kernels.layouts import Layout, PackedInteger, SparseBitmask, SparseNM
from compress_kernels.layouts.sparse import index_bits, pack_mask, unpack_mask
from torch import Tensor

SHAPE = (7, 40)
GRID = PackedInteger(3, 8, False, torch.float32)


def random_mask(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if kind == "bitmask":
        return torch.rand(SHAPE, generator=generator) < 0.4
    order = torch.rand(SHAPE[0], SHAPE[1] // 4, 4, generator=generator).argsort(-1)
    return (order < 2).view(SHAPE)


def layout_for(
    kind: str, mask: Tensor, grid: PackedInteger | None, dtype: torch.dtype = torch.bfloat16
) -> Layout:
    return SparseNM(2, 4, grid, dtype) if kind == "n:m" else SparseBitmask(int(mask.sum()), grid, dtype)


@pytest.mark.parametrize("columns", [1, 7, 8, 9, 40])
def test_masks_bit_by_bit(columns: int) -> None:
    mask = torch.rand(5, columns, generator=torch.Generator().manual_seed(columns)) < 0.5
    packed = pack_mask(mask)
    assert packed.shape == (5, -(-columns // 8))
    for i in range(5):
        number = sum(1 << j for j in range(columns) if mask[i, j])
        assert int.from_bytes(bytes(packed[i].tolist()), "little") == number
    assert torch.equal(unpack_mask(packed, columns), mask)


@pytest.mark.parametrize(("m", "bits"), [(2, 1), (4, 2), (5, 3), (8, 3), (16, 4), (32, 5)])
def test_bits_of_a_place(m: int, bits: int) -> None:
    assert index_bits(m) == bits


@pytest.mark.parametrize("kind", ["n:m", "bitmask"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_values_come_back_and_the_rest_is_zero(kind: str, dtype: torch.dtype) -> None:
    mask = random_mask(kind)
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    layout = layout_for(kind, mask, None, dtype)
    tensors = layout.encode(weight, mask)  # type: ignore[attr-defined]
    expected = torch.where(mask, weight.to(dtype), torch.zeros(()).to(dtype))
    assert torch.equal(layout.decode(tensors, SHAPE, dtype), expected)


@pytest.mark.parametrize("kind", ["n:m", "bitmask"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_kept_codes_come_back_and_the_rest_is_zero(kind: str, symmetric: bool) -> None:
    mask, grid = random_mask(kind), PackedInteger(3, 8, symmetric, torch.float32)
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(0, 8, SHAPE, generator=generator)
    scale = torch.rand(SHAPE[0], 5, generator=generator) + 0.5
    zero = torch.randint(0, 8, (SHAPE[0], 5), generator=generator)
    layout = layout_for(kind, mask, grid)
    tensors = layout.encode_codes(codes, scale, None if symmetric else zero, mask)  # type: ignore[attr-defined]
    middle = torch.full_like(zero, 4) if symmetric else zero
    dense = (codes - middle.repeat_interleave(8, 1)) * scale.repeat_interleave(8, 1)
    assert torch.equal(layout.decode(tensors, SHAPE, torch.float32), dense * mask)


@pytest.mark.parametrize("kind", ["n:m", "bitmask"])
@pytest.mark.parametrize("grid", [None, GRID])
def test_tensors_are_those_that_were_declared(kind: str, grid: PackedInteger | None) -> None:
    mask = random_mask(kind)
    layout = layout_for(kind, mask, grid)
    if grid is None:
        tensors = layout.encode(torch.randn(SHAPE), mask)  # type: ignore[attr-defined]
    else:
        tensors = layout.encode_codes(  # type: ignore[attr-defined]
            torch.ones(SHAPE, dtype=torch.int32), torch.ones(7, 5), torch.ones(7, 5, dtype=torch.int32), mask
        )
    declared = layout.specs(SHAPE)
    assert tensors.keys() == declared.keys()
    for name, spec in declared.items():
        assert (tuple(tensors[name].shape), tensors[name].dtype) == (spec.shape, spec.dtype), name


def test_a_group_that_keeps_fewer_is_filled_with_zeros() -> None:
    mask = torch.zeros(1, 8, dtype=torch.bool)
    mask[0, 5] = True
    layout = SparseNM(2, 4)
    tensors = layout.encode(torch.arange(1.0, 9.0).unsqueeze(0), mask)
    assert tensors["weight_values"].shape == (1, 4)
    assert layout.decode(tensors, (1, 8), torch.float32).tolist() == [[0, 0, 0, 0, 0, 6, 0, 0]]
    assert layout.columns(tensors, (1, 8)).tolist() == [[0, 1, 4, 5]]


def test_a_mask_that_keeps_too_many_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 2 of 4"):
        SparseNM(2, 4).encode(torch.randn(2, 8), torch.ones(2, 8, dtype=torch.bool))
    with pytest.raises(ValueError):
        SparseBitmask(3).encode(torch.randn(2, 8), torch.ones(2, 8, dtype=torch.bool))


def test_places_that_cannot_be_are_refused() -> None:
    mask = random_mask("n:m")
    layout = SparseNM(2, 4)
    tensors = layout.encode(torch.randn(SHAPE), mask)
    falling = {**tensors, "weight_indices": torch.zeros_like(tensors["weight_indices"])}
    with pytest.raises(ValueError, match="not ascending"):
        layout.columns(falling, SHAPE)
    with pytest.raises(ValueError, match="not ascending"):
        layout.packed_mask(falling, SHAPE)
    five = SparseNM(1, 5)
    beyond = {"weight_indices": torch.full((1, 1), 7, dtype=torch.int32)}
    with pytest.raises(ValueError, match="a place beyond 4"):
        five.columns(beyond, (1, 5))


@pytest.mark.parametrize(("n", "m", "columns"), [(2, 4, 48), (2, 4, 44), (1, 4, 48), (4, 8, 48)])
def test_the_mask_of_packed_places(n: int, m: int, columns: int) -> None:
    torch.manual_seed(0)
    chosen = torch.rand(9, columns // m, m).argsort(-1)[..., :n]
    mask = torch.zeros(9, columns // m, m, dtype=torch.bool).scatter_(2, chosen, True).view(9, columns)
    layout = SparseNM(n, m)
    tensors = layout.encode(torch.randn(9, columns), mask)
    assert torch.equal(layout.packed_mask(tensors, (9, columns)), pack_mask(mask))


def test_one_place_that_cannot_be_is_refused_among_many() -> None:
    mask = torch.zeros(3, 64, dtype=torch.bool)
    mask[:, ::2] = True
    layout = SparseNM(2, 4)
    tensors = layout.encode(torch.randn(3, 64), mask)
    tensors["weight_indices"].view(torch.uint8)[1, 5] = 0b0100_0101  # the first four columns: 1 twice
    with pytest.raises(ValueError, match="not ascending"):
        layout.packed_mask(tensors, (3, 64))


def test_codes_need_a_grid() -> None:
    for layout in (SparseNM(2, 4), SparseBitmask(2)):
        with pytest.raises(ValueError, match="values, not codes"):
            layout.encode_codes(torch.ones(1, 4), torch.ones(1, 1), None, torch.ones(1, 4, dtype=torch.bool))


def test_parameters_of_the_grid() -> None:
    mask = random_mask("bitmask")
    layout = SparseBitmask(int(mask.sum()), GRID)
    scale, zero = torch.rand(7, 5), torch.randint(0, 8, (7, 5))
    tensors = layout.encode_codes(torch.zeros(SHAPE, dtype=torch.int32), scale, zero, mask)
    found = GRID.parameters(tensors, SHAPE)
    assert torch.equal(found[0], scale)
    assert torch.equal(found[1].to(zero.dtype), zero)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 8), (1, 2)])
def test_where_fewer_codes_are_kept_the_rest_decodes_to_zero(n: int, m: int) -> None:
    generator = torch.Generator().manual_seed(2)
    codes = torch.randint(0, 8, SHAPE, generator=generator, dtype=torch.int32)
    scale, zero = (
        torch.ones(SHAPE[0], 5),
        torch.randint(0, 8, (SHAPE[0], 5), generator=generator, dtype=torch.int32),
    )
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[:, :: 2 * m] = True  # one of m in every other group, and none in the groups between
    layout = SparseNM(n, m, GRID, torch.float32)
    dense = layout.decode(layout.encode_codes(codes, scale, zero, mask), SHAPE, torch.float32)
    expected = (codes - zero.repeat_interleave(8, 1)).float() * mask
    assert torch.equal(dense, expected)
