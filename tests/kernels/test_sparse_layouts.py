"""Sparse layouts: what goes in comes out, in the bytes that were announced."""

from __future__ import annotations

import pytest
import torch
from compress_kernels.layouts import PackedInteger, SparseBitmask, SparseNM, check, layout_from_json

SHAPES = [(1, 8), (3, 32), (7, 64), (16, 96)]


def _mask(shape: tuple[int, int]) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.4


def _nm_mask(shape: tuple[int, int], n: int, m: int) -> torch.Tensor:
    scores = torch.rand(shape[0], shape[1] // m, m, generator=torch.Generator().manual_seed(2))
    return torch.zeros_like(scores).scatter_(-1, scores.topk(n).indices, 1.0).bool().view(shape)


def _codes(shape: tuple[int, int], grid: PackedInteger) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    groups = 1 if isinstance(grid.group, str) else shape[1] // grid.group
    rows = 1 if grid.group == "tensor" else shape[0]
    codes = torch.randint(0, 1 << grid.bits, shape, generator=generator, dtype=torch.int32)
    scale = torch.rand(rows, groups, generator=generator).to(grid.scale_dtype)
    zero = torch.randint(0, 1 << grid.bits, (rows, groups), generator=generator, dtype=torch.int32)
    return codes, scale, torch.full_like(zero, 1 << (grid.bits - 1)) if grid.symmetric else zero


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [*SHAPES, (5, 13), (4, 1)])
def test_bitmask_of_numbers(shape: tuple[int, int], dtype: torch.dtype) -> None:
    mask, weight = _mask(shape), torch.randn(shape).to(dtype)
    layout = SparseBitmask(int(mask.sum()), dtype)
    tensors = layout.encode(weight, mask)
    check(layout, tensors, shape)
    assert torch.equal(layout.decode(tensors, shape, dtype), weight.masked_fill(~mask, 0))
    assert torch.equal(layout.mask(tensors, shape), mask)
    assert layout_from_json(layout.to_json()) == layout


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (1, 2)])
@pytest.mark.parametrize("shape", SHAPES)
def test_nm_of_numbers(shape: tuple[int, int], n: int, m: int) -> None:
    mask, weight = _nm_mask(shape, n, m), torch.randn(shape).bfloat16()
    layout = SparseNM(n, m)
    tensors = layout.encode(weight, mask)
    check(layout, tensors, shape)
    assert torch.equal(layout.decode(tensors, shape, torch.bfloat16), weight.masked_fill(~mask, 0))
    assert torch.equal(layout.mask(tensors, shape), mask)
    assert layout_from_json(layout.to_json()) == layout


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [8, "channel", "tensor"])
def test_codes(bits: int, symmetric: bool, group: int | str) -> None:
    grid = PackedInteger(bits, group, symmetric, torch.float16)
    for shape in SHAPES:
        codes, scale, zero = _codes(shape, grid)
        full = grid.decode(grid.encode(codes, scale, zero), shape, torch.float32)
        for layout, mask in (
            (SparseNM(2, 4, grid), _nm_mask(shape, 2, 4)),
            (SparseBitmask(int(_mask(shape).sum()), grid), _mask(shape)),
        ):
            tensors = layout.encode(codes, mask, scale, zero)
            check(layout, tensors, shape)
            assert torch.equal(layout.decode(tensors, shape, torch.float32), full.masked_fill(~mask, 0))
            assert layout_from_json(layout.to_json()) == layout


def test_two_of_four_takes_a_documented_number_of_bytes() -> None:
    # 16 rows of 64 columns: 32 values of 2 bytes and 32 places of 2 bits a row.
    specs = SparseNM(2, 4).specs((16, 64))
    assert {name: spec.nbytes for name, spec in specs.items()} == {"weight_kept": 16 * 64, "weight_indices": 16 * 8}


def test_a_mask_that_breaks_the_pattern_is_refused() -> None:
    with pytest.raises(ValueError, match="2 of every 4"):
        SparseNM(2, 4).encode(torch.ones(1, 4), torch.tensor([[True, True, True, False]]))
    with pytest.raises(ValueError, match="keeps 3"):
        SparseBitmask(2).encode(torch.ones(1, 4), torch.tensor([[True, True, True, False]]))
    with pytest.raises(ValueError, match="does not divide"):
        SparseNM(2, 4).specs((4, 6))
