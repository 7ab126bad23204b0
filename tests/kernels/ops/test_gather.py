"""Rows of packed weights by their ids, against the rows of the decoded weight."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from compress_kernels.layouts import BLOCK_TYPES, Columns, Dense, PackedInteger, SumOf
from compress_kernels.ops.dispatch import Prepared
from compress_kernels.ops.table import prepare
from torch import Tensor

from benchmarks.speed.cases import (
    Made,
    gguf_weight,
    grid_weight,
    int8_weight,
    low_rank_weight,
    nf4_weight,
    sparse_weight,
)

SHAPE = (33, 96)
EPSILON = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2**-22}


def columns_weight() -> Made:
    layout = Columns(40)
    index = torch.randperm(SHAPE[1])[:40].sort().values
    return layout, layout.encode(index, Dense().encode(torch.randn(33, 40)))


def sum_weight() -> Made:
    base, low = grid_weight(SHAPE, PackedInteger(4, 32)), low_rank_weight(SHAPE, 8)
    layout = SumOf((base[0], low[0]))
    return layout, layout.encode((base[1], low[1]))


MAKERS: dict[str, Callable[[], Made]] = {
    **{f"w{bits}": lambda b=bits: grid_weight(SHAPE, PackedInteger(b, 32)) for bits in range(2, 9)},
    "w4 channel": lambda: grid_weight(SHAPE, PackedInteger(4, "channel", False)),
    "w4 tensor": lambda: grid_weight(SHAPE, PackedInteger(4, "tensor", False)),
    "w3 asymmetric": lambda: grid_weight(SHAPE, PackedInteger(3, 48, False)),
    "nf4": lambda: nf4_weight(SHAPE, 32),
    "int8": lambda: int8_weight(SHAPE),
    "dense": lambda: (Dense(), Dense().encode(torch.randn(SHAPE))),
    "2:4": lambda: sparse_weight(SHAPE, "2:4"),
    "bitmask w4": lambda: sparse_weight(SHAPE, "bitmask", PackedInteger(4, 32)),
    "columns": columns_weight,
    "sum": sum_weight,
    "low rank": lambda: low_rank_weight(SHAPE, 8),
}


def prepared(made: Made, shape: tuple[int, int], backend: str = "auto") -> tuple[Prepared, Tensor]:
    layout, tensors = made
    return prepare(layout, tensors, shape, backend=backend), layout.decode(tensors, shape, torch.float64)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_equals_the_rows_of_the_decoded_weight(name: str, backend: str) -> None:
    torch.manual_seed(0)
    weight, dense = prepared(MAKERS[name](), SHAPE, backend)
    for ids in (torch.tensor([[32, 0, 7], [7, 7, 1]]), torch.tensor(5), torch.empty(0, 2, dtype=torch.int64)):
        for dtype, epsilon in EPSILON.items():
            rows = weight.rows(ids, dtype)
            assert rows.dtype == dtype
            assert rows.shape == (*ids.shape, SHAPE[1])
            scale = float(dense.abs().max())
            torch.testing.assert_close(rows.double(), dense[ids], rtol=4 * epsilon, atol=4 * epsilon * scale)
            assert torch.equal(rows, weight.rows(ids.int(), dtype))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_rows_of_ggml_types_are_exact(name: str) -> None:
    torch.manual_seed(0)
    shape = (9, 512)
    layout, tensors = gguf_weight(name, shape)
    weight = prepare(layout, tensors, shape)
    ids = torch.tensor([8, 0, 3, 3])
    for dtype in EPSILON:
        assert torch.equal(weight.rows(ids, dtype), layout.decode(tensors, shape, dtype)[ids])


@pytest.mark.parametrize("wrong", [-1, 33])
def test_ids_that_are_not_there(wrong: int) -> None:
    weight, _ = prepared(MAKERS["w4"](), SHAPE)
    with pytest.raises(IndexError, match=f"row {wrong} .* 33 rows"):
        weight.rows(torch.tensor([0, wrong]), torch.float32)
    with pytest.raises(TypeError, match="int32 or int64"):
        weight.rows(torch.tensor([0.0]), torch.float32)
    with pytest.raises(ValueError, match="not torch.float64"):
        weight.rows(torch.tensor([0]), torch.float64)


@pytest.mark.parametrize("name", ["w4", "nf4", "int8", "sum"])
def test_one_operator_under_compile(name: str) -> None:
    torch.manual_seed(0)
    weight, _ = prepared(MAKERS[name](), SHAPE)
    compiled = torch.compile(
        lambda ids: weight.rows(ids, torch.bfloat16) + 1, backend="aot_eager", fullgraph=True
    )
    ids = torch.tensor([[1, 32], [0, 0]])
    torch.testing.assert_close(compiled(ids), weight.rows(ids, torch.bfloat16) + 1)
