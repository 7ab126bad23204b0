"""What every layout promises: sizes before values, plain data and back, and refusals in words."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from compress_kernels.layouts import (
    Columns,
    Dense,
    Layout,
    LowRank,
    NormalFloat4,
    PackedInteger,
    PlainInteger,
    SparseBitmask,
    SparseNM,
    SumOf,
    TableCodes,
    TensorSpec,
    check,
    layout_from_json,
    nbytes,
)
from compress_kernels.layouts.base import part, prefixed
from compress_kernels.layouts.dtypes import dtype_from_name, dtype_name

SHAPE = (16, 64)
GRID = PackedInteger(3, 32, False, torch.float16)
LAYOUTS: dict[str, Layout] = {
    "dense": Dense(torch.float16),
    "packed": PackedInteger(4, 32),
    "packed, per channel": PackedInteger(5, "channel", False, torch.float32),
    "packed, per tensor": PackedInteger(8, "tensor", False),
    "plain": PlainInteger(8, "channel"),
    "nf4": NormalFloat4(32, torch.float16),
    "shift": TableCodes("shift", 3, 32, torch.float16),
    "rf8": TableCodes("rf8", 8, 16),
    "bitmask": SparseBitmask(100),
    "bitmask over codes": SparseBitmask(100, GRID),
    "n:m": SparseNM(2, 4),
    "n:m over codes": SparseNM(1, 8, GRID),
    "low rank": LowRank(3),
    "low rank, factors on grids": LowRank(32, PackedInteger(8, "channel"), PackedInteger(4, 32)),
    "columns": Columns(5, Dense(torch.float32)),
    "sum": SumOf((PackedInteger(4, 32), LowRank(2))),
    "sum of three": SumOf((SparseBitmask(7), LowRank(2), Columns(1))),
}


@pytest.fixture(params=LAYOUTS, ids=list(LAYOUTS))
def layout(request: pytest.FixtureRequest) -> Layout:
    return LAYOUTS[request.param]


def test_plain_data_and_back(layout: Layout) -> None:
    assert layout_from_json(json.loads(json.dumps(layout.to_json()))) == layout


def test_layouts_are_values(layout: Layout) -> None:
    assert dataclasses.replace(layout) == layout  # type: ignore[type-var]
    assert hash(layout) == hash(dataclasses.replace(layout))  # type: ignore[type-var]


def test_bytes_are_those_of_the_tensors(layout: Layout) -> None:
    specs = layout.specs(SHAPE)
    tensors = {name: torch.zeros(spec.shape, dtype=spec.dtype) for name, spec in specs.items()}
    assert nbytes(layout, SHAPE) == sum(tensor.nbytes for tensor in tensors.values())


def test_tensors_that_fit_are_accepted(layout: Layout) -> None:
    check(layout, {n: torch.zeros(s.shape, dtype=s.dtype) for n, s in layout.specs(SHAPE).items()}, SHAPE)


def test_a_missing_tensor_is_named(layout: Layout) -> None:
    specs = layout.specs(SHAPE)
    last = list(specs)[-1]
    tensors = {n: torch.zeros(s.shape, dtype=s.dtype) for n, s in specs.items() if n != last}
    with pytest.raises(ValueError, match=f"lacks {last}"):
        check(layout, tensors, SHAPE)


def test_a_tensor_of_another_shape_or_dtype_is_named(layout: Layout) -> None:
    specs = layout.specs(SHAPE)
    first = next(iter(specs))
    for wrong in (
        torch.zeros((*specs[first].shape, 2), dtype=specs[first].dtype),
        torch.zeros(specs[first].shape, dtype=torch.complex64),
    ):
        tensors = {n: torch.zeros(s.shape, dtype=s.dtype) for n, s in specs.items()} | {first: wrong}
        with pytest.raises(ValueError, match=f"^{first} of a .* should be"):
            check(layout, tensors, SHAPE)


def test_an_unknown_layout_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(
        ValueError, match="unknown layout 'jpeg': this version reads affine, awq, bitmask, columns, dense"
    ):
        layout_from_json({"name": "jpeg"})


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: PackedInteger(1), "2 to 8 bits"),
        (lambda: PackedInteger(9), "2 to 8 bits"),
        (lambda: PackedInteger(4, 0), "at least one column"),
        (lambda: PackedInteger(4, 24).specs(SHAPE), "24 does not divide 64"),
        (lambda: NormalFloat4(48), "power of two"),
        (lambda: NormalFloat4(128).specs(SHAPE), "do not divide"),
        (lambda: SparseNM(4, 4), "is not a pattern"),
        (lambda: SparseNM(2, 64), "is not a pattern"),
        (lambda: SparseNM(2, 5).specs(SHAPE), "groups of 5"),
        (lambda: LowRank(0).specs(SHAPE), "rank of 1 to 64, not 0"),
        (lambda: LowRank(65).specs(SHAPE), "rank of 1 to 64, not 65"),
        (lambda: Columns(0).specs(SHAPE), "keeps 1 to 64"),
        (lambda: SumOf((Dense(),)), "two parts or more"),
        (lambda: dtype_from_name("int8"), "is not one of float32"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_prefixes_nest() -> None:
    entries = prefixed("part0_", prefixed("left_", {"weight": 1}))
    assert entries == {"part0_left_weight": 1}
    tensors = {"left_a": torch.zeros(1), "right_a": torch.ones(1)}
    assert part("right_", tensors) == {"a": tensors["right_a"]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_names_of_dtypes(dtype: torch.dtype) -> None:
    assert dtype_from_name(dtype_name(dtype)) == dtype


def test_bytes_of_a_spec() -> None:
    assert TensorSpec((3, 5), torch.int16).nbytes == 30
    assert TensorSpec((), torch.float64).nbytes == 8
    assert TensorSpec((0, 4), torch.float32).nbytes == 0


def test_schemes_leave_out_what_differs_between_weights() -> None:
    assert LowRank(3).scheme == LowRank(9).scheme
    assert Columns(3).scheme == Columns(9).scheme
    assert SparseBitmask(3).scheme == SparseBitmask(9).scheme
    assert SparseBitmask(3).scheme != SparseBitmask(3, GRID).scheme
