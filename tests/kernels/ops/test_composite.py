"""Weights made of parts: factors, columns, sums, dense and int8 parts."""

from __future__ import annotations

import pytest
import torch
from compress_kernels.layouts import (
    Columns,
    Dense,
    Layout,
    LowRank,
    PackedInteger,
    PlainInteger,
    SparseBitmask,
    SumOf,
)
from compress_kernels.ops.table import prepare
from torch import Tensor

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
SHAPE = (33, 96)


def dense(shape: tuple[int, int]) -> tuple[Layout, dict[str, Tensor]]:
    return Dense(), Dense().encode(torch.randn(shape))


def grid(shape: tuple[int, int]) -> tuple[Layout, dict[str, Tensor]]:
    layout = PackedInteger(4, 32)
    return layout, layout.encode(torch.randint(0, 16, shape), torch.rand(shape[0], shape[1] // 32) * 0.1)


def low_rank(shape: tuple[int, int]) -> tuple[Layout, dict[str, Tensor]]:
    layout = LowRank(8)
    return layout, layout.encode(dense((shape[0], 8))[1], dense((8, shape[1]))[1])


def columns(shape: tuple[int, int]) -> tuple[Layout, dict[str, Tensor]]:
    layout = Columns(5)
    return layout, layout.encode(torch.tensor([0, 3, 50, 94, 95]), dense((shape[0], 5))[1])


def sparse(shape: tuple[int, int]) -> tuple[Layout, dict[str, Tensor]]:
    mask = torch.rand(shape) < 0.1
    layout = SparseBitmask(int(mask.sum()))
    return layout, layout.encode(torch.randn(shape), mask)


def packed_factors(shape: tuple[int, int]) -> tuple[Layout, dict[str, Tensor]]:
    left, right = PackedInteger(4, "channel"), PackedInteger(4, 32)
    tensors = LowRank(8, left, right).encode(
        left.encode(torch.randint(0, 16, (shape[0], 8)), torch.rand(shape[0], 1)), grid((8, shape[1]))[1]
    )
    return LowRank(8, left, right), tensors


def together(*makers: object) -> tuple[Layout, dict[str, Tensor]]:
    parts = [make(SHAPE) for make in makers]  # type: ignore[operator]
    layout = SumOf(tuple(each for each, _ in parts))
    return layout, layout.encode(tuple(tensors for _, tensors in parts))


CASES = {
    "dense": lambda: dense(SHAPE),
    "low rank": lambda: low_rank(SHAPE),
    "packed factors": lambda: packed_factors(SHAPE),
    "columns": lambda: columns(SHAPE),
    "grid + low rank": lambda: together(grid, low_rank),
    "low rank + columns": lambda: together(low_rank, columns),
    "low rank + sparse": lambda: together(low_rank, sparse),
    "grid + sparse + low rank": lambda: together(grid, sparse, low_rank),
}


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("rows", [1, 3, 17, 129])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_equals_dense(case: str, rows: int, backend: str) -> None:
    torch.manual_seed(rows)
    layout, tensors = CASES[case]()
    prepared = prepare(layout, tensors, SHAPE, backend=backend)
    bias = torch.randn(SHAPE[0])
    for dtype, tolerance in TOLERANCE.items():
        x = torch.randn(rows, SHAPE[1]).to(dtype)
        expected = x.double() @ layout.decode(tensors, SHAPE, torch.float32).double().T + bias
        y = prepared(x, bias)
        assert y.dtype == dtype
        assert (y.double() - expected).norm() / expected.norm() < tolerance, dtype


def test_strides_and_empty_inputs() -> None:
    layout, tensors = together(grid, low_rank)
    prepared = prepare(layout, tensors, SHAPE)
    wide = torch.randn(2, 5, 192)
    torch.testing.assert_close(prepared(wide[..., ::2]), prepared(wide[..., ::2].contiguous()))
    assert prepared(torch.empty(0, 96)).shape == (0, 33)


@pytest.mark.parametrize("index", [[0, 3, 50, 94, 96], [-1, 3, 50, 94, 95], [0, 3, 3, 94, 95]])
def test_bad_columns_are_refused(index: list[int]) -> None:
    layout, tensors = columns(SHAPE)
    bad = {**tensors, "columns_index": torch.tensor(index, dtype=torch.int32)}
    with pytest.raises(ValueError, match="columns_index"):
        prepare(layout, bad, SHAPE)


def test_a_missing_factor_is_named() -> None:
    layout, tensors = low_rank(SHAPE)
    with pytest.raises(ValueError, match="lacks weight"):
        prepare(layout, {"left_weight": tensors["left_weight"]}, SHAPE)


@pytest.mark.parametrize("group", ["channel", "tensor"])
@pytest.mark.parametrize("rows", [0, 1, 3, 17, 129])
def test_int8(group: str, rows: int) -> None:
    layout = PlainInteger(8, group)  # type: ignore[arg-type]
    scale = torch.rand(SHAPE[0] if group == "channel" else 1, 1) * 0.1 + 0.01
    tensors = layout.encode(torch.randint(0, 256, SHAPE), scale)
    for dtype, tolerance in TOLERANCE.items():
        x = torch.randn(rows, SHAPE[1]).to(dtype)
        y = prepare(layout, tensors, SHAPE)(x)
        exact = prepare(layout, tensors, SHAPE, backend="reference")(x)
        assert y.shape == (rows, 33)
        assert (y.double() - exact.double()).norm() <= tolerance * exact.double().norm()
        dequantized = x.double() @ layout.decode(tensors, SHAPE, torch.float32).double().T
        assert (y.double() - dequantized).norm() <= 2e-2 * dequantized.norm()


def test_int8_of_zeros_is_zero() -> None:
    layout = PlainInteger(8, "channel")
    tensors = layout.encode(torch.randint(0, 256, SHAPE), torch.rand(SHAPE[0], 1))
    assert not prepare(layout, tensors, SHAPE)(torch.zeros(2, 96)).any()
