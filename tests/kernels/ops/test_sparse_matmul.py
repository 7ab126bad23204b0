"""Sparse products on the CPU, and their layouts."""

from __future__ import annotations

import itertools

import pytest
import torch
from compress_kernels.decode import row_counts
from compress_kernels.layouts import PackedInteger, SparseBitmask, SparseNM, check, layout_from_json
from compress_kernels.ops.dispatch import BackendError
from compress_kernels.ops.sparse_matmul.operands import operands
from compress_kernels.ops.table import prepare
from torch import Tensor

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
Layouts = SparseBitmask | SparseNM


def pattern(shape: tuple[int, int], n: int = 2, m: int = 4) -> Tensor:
    chosen = torch.rand(shape[0], shape[1] // m, m).argsort(-1)[..., :n]
    return torch.zeros(shape[0], shape[1] // m, m, dtype=torch.bool).scatter_(2, chosen, True).view(shape)


def coded(make: type, grid: PackedInteger, shape: tuple[int, int]) -> tuple[Layouts, dict[str, Tensor]]:
    groups = 1 if isinstance(grid.group_size, str) else shape[1] // grid.group_size
    rows = 1 if grid.group_size == "tensor" else shape[0]
    codes = torch.randint(0, 1 << grid.bits, shape)
    scale = torch.rand(rows, groups) * 0.1 + 0.01
    zero = None if grid.symmetric else torch.randint(0, 1 << grid.bits, (rows, groups))
    mask = pattern(shape) if make is SparseNM else torch.rand(shape) < 0.5
    layout = SparseNM(2, 4, grid) if make is SparseNM else SparseBitmask(int(mask.sum()), grid)
    return layout, layout.encode_codes(codes, scale, zero, mask)


def plain(make: type, shape: tuple[int, int]) -> tuple[Layouts, dict[str, Tensor]]:
    mask = pattern(shape) if make is SparseNM else torch.rand(shape) < 0.5
    layout = SparseNM() if make is SparseNM else SparseBitmask(int(mask.sum()))
    return layout, layout.encode(torch.randn(shape), mask)


def compare(
    layout: Layouts, tensors: dict[str, Tensor], shape: tuple[int, int], rows: int, backend: str
) -> None:
    prepared = prepare(layout, tensors, shape, backend=backend)
    for dtype, tolerance in TOLERANCE.items():
        x = torch.randn(rows, shape[1]).to(dtype)
        expected = x.double() @ layout.decode(tensors, shape, dtype).double().T
        error = (prepared(x).double() - expected).norm() / expected.norm()
        assert error < tolerance, (layout, shape, rows, dtype)


@pytest.mark.parametrize("make", [SparseBitmask, SparseNM])
@pytest.mark.parametrize("shape", [(33, 96), (40, 1152), (20, 4224)])
@pytest.mark.parametrize("rows", [1, 3, 9, 33, 129])
def test_values(make: type, shape: tuple[int, int], rows: int) -> None:
    torch.manual_seed(rows)
    compare(*plain(make, shape), shape, rows, "auto")


@pytest.mark.parametrize("make", [SparseBitmask, SparseNM])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_codes(make: type, bits: int, symmetric: bool) -> None:
    torch.manual_seed(bits)
    for group, shape in itertools.product((32, 96, "channel", "tensor"), ((33, 96), (24, 1152))):
        layout, tensors = coded(make, PackedInteger(bits, group, symmetric), shape)
        for rows in (1, 3, 17):
            compare(layout, tensors, shape, rows, "auto")


@pytest.mark.parametrize("make", [SparseBitmask, SparseNM])
@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_of_whole_vectors_of_the_mask(make: type, symmetric: bool) -> None:
    torch.manual_seed(1)
    for group, shape in ((64, (37, 1280)), (128, (18, 1408)), (320, (5, 640)), ("channel", (21, 1196))):
        layout, tensors = coded(make, PackedInteger(4, group, symmetric), shape)  # type: ignore[arg-type]
        for rows in (1, 2, 3, 4, 5):
            compare(layout, tensors, shape, rows, "auto")


def test_rows_that_keep_all_and_rows_that_keep_nothing() -> None:
    torch.manual_seed(2)
    shape = (19, 192)
    mask = torch.rand(shape) < 0.5
    mask[3], mask[7], mask[18] = True, False, True
    layout = SparseBitmask(int(mask.sum()), PackedInteger(4, 64, False))
    codes, zero = torch.randint(0, 16, shape), torch.randint(0, 16, (19, 3))
    tensors = layout.encode_codes(codes, torch.rand(19, 3), zero, mask)
    compare(layout, tensors, shape, 1, "auto")


def test_what_is_not_finite_stays_visible() -> None:
    torch.manual_seed(3)
    shape = (9, 192)
    prepared = prepare(*coded(SparseBitmask, PackedInteger(4, 64, False), shape), shape)
    for value in (float("nan"), float("inf"), -float("inf")):
        x = torch.randn(3, 192).bfloat16()
        x[1, 70] = value
        finite = prepared(x).isfinite()
        assert finite[::2].all()
        assert not finite[1].any()


@pytest.mark.parametrize("width", [1, 7, 8, 37])
def test_bits_of_a_mask_are_counted(width: int) -> None:
    mask = torch.randint(0, 256, (9, width), dtype=torch.uint8)
    mask[0] = 255
    assert row_counts(mask).tolist() == [sum(int(byte).bit_count() for byte in row) for row in mask]


@pytest.mark.parametrize("make", [SparseBitmask, SparseNM])
def test_reference(make: type) -> None:
    compare(*plain(make, (33, 96)), (33, 96), 3, "reference")
    compare(*coded(make, PackedInteger(3, 32, False), (33, 96)), (33, 96), 3, "reference")


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (4, 8), (1, 4), (3, 6)])
def test_any_pattern(n: int, m: int) -> None:
    shape = (33, 96)
    layout, mask, weight = SparseNM(n, m), pattern(shape, n, m), torch.randn(shape)
    tensors = layout.encode(weight, mask)
    assert torch.equal(layout.decode(tensors, shape, torch.bfloat16), (weight * mask).bfloat16())
    compare(layout, tensors, shape, 3, "auto")


@pytest.mark.parametrize("make", [SparseBitmask, SparseNM])
def test_the_layout_is_what_it_declares(make: type) -> None:
    shape = (33, 96)
    for layout, tensors in (plain(make, shape), coded(make, PackedInteger(4, 32, False), shape)):
        check(layout, tensors, shape)
        assert layout_from_json(layout.to_json()) == layout


def test_memory_of_half_the_weights() -> None:
    shape = (256, 1024)
    for make in (SparseBitmask, SparseNM):
        prepared = prepare(*plain(make, shape), shape)
        assert prepared.nbytes < 0.6 * 2 * shape[0] * shape[1]


def test_fewer_than_n_are_padded_with_zeros() -> None:
    shape = (4, 16)
    mask = pattern(shape)
    mask[0] = False
    mask[1, :4] = torch.tensor([False, False, False, True])
    weight = torch.randn(shape)
    layout = SparseNM()
    tensors = layout.encode(weight, mask)
    assert torch.equal(layout.decode(tensors, shape, torch.bfloat16), (weight * mask).bfloat16())


def test_empty_rows_and_nothing_kept() -> None:
    shape = (33, 96)
    layout = SparseBitmask(0)
    tensors = layout.encode(torch.randn(shape), torch.zeros(shape, dtype=torch.bool))
    assert torch.equal(prepare(layout, tensors, shape)(torch.ones(2, 96)), torch.zeros(2, 33))
    assert prepare(layout, tensors, shape)(torch.ones(0, 96)).shape == (0, 33)


def test_bad_tensors_are_named() -> None:
    shape = (33, 96)
    layout, tensors = plain(SparseBitmask, shape)
    flipped = {**tensors, "weight_mask": tensors["weight_mask"] ^ 1}
    with pytest.raises(ValueError, match="weight_mask keeps"):
        prepare(layout, flipped, shape)
    with pytest.raises(ValueError, match="weight_values"):
        prepare(layout, {**tensors, "weight_values": tensors["weight_values"][:-1]}, shape)
    with pytest.raises(ValueError, match="lacks"):
        prepare(layout, {"weight_values": tensors["weight_values"]}, shape)
    pairs, stored = plain(SparseNM, shape)
    with pytest.raises(ValueError, match="ascending"):
        prepare(pairs, {**stored, "weight_indices": torch.zeros_like(stored["weight_indices"])}, shape)
    layout3 = SparseNM(1, 3)
    stored = layout3.encode(torch.randn(shape), pattern(shape, 1, 3))
    with pytest.raises(ValueError, match="beyond 2"):
        prepare(layout3, {**stored, "weight_indices": torch.full_like(stored["weight_indices"], -1)}, shape)


def test_a_mask_of_columns_that_are_not_there_is_named() -> None:
    shape = (4, 12)
    layout = SparseBitmask(8, None, torch.bfloat16)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[:, ::6] = True
    tensors = layout.encode(torch.ones(shape), mask)
    operands(layout, tensors, shape)
    moved = tensors["weight_mask"].clone()
    moved[0, 0] -= 1  # column 0 is dropped, and the bit of a thirteenth column is set in its place
    moved[0, 1] += 1 << 4
    with pytest.raises(ValueError, match="beyond the last"):
        operands(layout, {**tensors, "weight_mask": moved}, shape)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("make", [SparseBitmask, SparseNM])
def test_values_of_other_dtypes_are_multiplied_by_the_reference(make: type, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    shape = (33, 96)
    mask = pattern(shape) if make is SparseNM else torch.rand(shape) < 0.5
    layout = SparseNM(dtype=dtype) if make is SparseNM else SparseBitmask(int(mask.sum()), None, dtype)
    weight = torch.randn(shape)
    tensors = layout.encode(weight, mask)
    compare(layout, tensors, shape, 5, "auto")
    prepared = prepare(layout, tensors, shape)
    assert prepared.backend.name == "reference"
    assert "kernels read bfloat16" in prepared.note
    x = torch.randn(5, 96, dtype=torch.float64)
    expected = x @ (weight.to(dtype).double() * mask).T
    torch.testing.assert_close(prepared(x.float()).double(), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(BackendError, match="kernels read bfloat16"):
        prepare(layout, tensors, shape, backend="cpu")
