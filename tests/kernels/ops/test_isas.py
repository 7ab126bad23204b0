"""The CPU kernels of every instruction set that this machine runs, against float64 products of the decoded weight."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from compress_kernels import native
from compress_kernels.layouts import BLOCK_TYPES, Dense, PackedInteger
from compress_kernels.ops.table import prepare
from torch import Tensor

from benchmarks.speed.cases import TOLERANCE, Made, gguf_weight, grid_weight, nf4_weight

ISAS = native.available() or ("portable",)
ROWS = (1, 2, 3, 4, 7, 8, 9, 33)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with native.using(request.param):
        yield request.param


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def error(y: Tensor, expected: Tensor) -> float:
    return float((y.double() - expected).norm() / expected.norm())


def check(made: Made, shape: tuple[int, int], rows: tuple[int, ...] = ROWS) -> None:
    """Products of every dtype; the sums of bf16 and fp16 products are looked at before they are rounded."""
    layout, tensors = made
    prepared = prepare(layout, tensors, shape)
    assert prepared.backend.name == "cpu"
    for dtype, tolerance in TOLERANCE.items():
        weight = layout.decode(tensors, shape, torch.float64)
        for count in rows:
            x = torch.randn(count, 2 * shape[1]).to(dtype)[:, ::2]
            bias, residual = torch.randn(shape[0]), torch.randn(count, shape[0])
            y = prepared(x, bias, residual, torch.float32)
            expected = x.double() @ weight.T
            assert error(y - bias - residual, expected) < tolerance, (layout, shape, dtype, count)
            assert error(prepared(x), expected) < tolerance, (layout, shape, dtype, count)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_ggml_types(name: str, isa: str, threads: int) -> None:
    torch.manual_seed(0)
    for shape in ((37, 256), (6, 1280)) if BLOCK_TYPES[name].block == 256 else ((37, 96), (6, 1312)):
        check(gguf_weight(name, shape), shape)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_packed_integers(bits: int, symmetric: bool, isa: str, threads: int) -> None:
    torch.manual_seed(0)
    for group, shape in (
        (32, (37, 96)),
        (64, (66, 1280)),
        (48, (37, 96)),
        (192, (18, 1344)),
        (256, (18, 768)),
        ("channel", (37, 100)),
        ("tensor", (35, 136)),
    ):
        check(grid_weight(shape, PackedInteger(bits, group, symmetric)), shape, (1, 3, 8, 17))  # type: ignore[arg-type]


def test_nf4(isa: str, threads: int) -> None:
    torch.manual_seed(0)
    for shape in ((37, 96), (33, 640)):
        check(nf4_weight(shape, 32), shape, (1, 3, 9))


def test_dense(isa: str, threads: int) -> None:
    torch.manual_seed(0)
    for shape in ((37, 96), (33, 650), (3, 7)):
        check((Dense(), Dense().encode(torch.randn(shape))), shape)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_rows_are_decoded_exactly(name: str, isa: str) -> None:
    torch.manual_seed(0)
    layout, tensors = gguf_weight(name, (9, 512))
    prepared = prepare(layout, tensors, (9, 512))
    for dtype in TOLERANCE:
        expected = layout.decode(tensors, (9, 512), dtype)
        assert torch.equal(prepared.rows(torch.arange(9), dtype), expected)


@pytest.mark.parametrize("bits", range(2, 9))
def test_packed_rows_are_decoded_exactly(bits: int, isa: str) -> None:
    torch.manual_seed(0)
    for group, shape in ((32, (9, 96)), (8, (9, 96)), ("channel", (9, 100))):
        layout, tensors = grid_weight(shape, PackedInteger(bits, group, bits % 2 == 0))  # type: ignore[arg-type]
        rows = prepare(layout, tensors, shape).rows(torch.arange(9), torch.float32)
        assert torch.equal(rows, layout.decode(tensors, shape, torch.float32))


def test_what_is_small_stays_exact_beside_what_is_large(isa: str) -> None:
    """x is rounded by 32 columns: an outlier costs its own 32 columns some bits, and the others none."""
    torch.manual_seed(0)
    shape = (16, 256)
    layout, tensors = gguf_weight("q4_k", shape)
    prepared, weight = prepare(layout, tensors, shape), layout.decode(tensors, shape, torch.float64)
    x = torch.randn(1, 256)
    x[0, :32] = 0
    large = x.clone()
    large[0, 3] = 3e4
    difference = prepared(large.half(), None, None, torch.float32) - prepared(
        x.half(), None, None, torch.float32
    )
    expected = 3e4 * weight[:, 3]
    assert float((difference.double()[0] - expected).abs().max() / expected.abs().max()) < 1e-5


def test_an_outlier_costs_bits_of_its_own_span_alone(isa: str) -> None:
    """x of packed weights is rounded by 128 columns at most."""
    torch.manual_seed(0)
    shape = (16, 512)
    layout, tensors = grid_weight(shape, PackedInteger(4, "channel"))
    prepared, weight = prepare(layout, tensors, shape), layout.decode(tensors, shape, torch.float64)
    small, outlier = torch.randn(1, 512).bfloat16(), torch.zeros(1, 512).bfloat16()
    small[0, :128], outlier[0, 3] = 0, 3e4
    with_outlier = prepared(small + outlier, None, None, torch.float32)
    alone = prepared(outlier, None, None, torch.float32)
    assert error(with_outlier - alone, small.double() @ weight.T) < 5e-3


def test_results_are_rounded_to_the_nearest_bf16(isa: str) -> None:
    torch.manual_seed(0)
    shape = (64, 256)
    for made in (
        grid_weight(shape, PackedInteger(4, 64)),
        grid_weight(shape, PackedInteger(6, 64)),
        (Dense(), Dense().encode(torch.randn(shape))),
    ):
        prepared = prepare(*made, shape)
        for rows in (1, 7, 20):
            x = torch.randn(rows, 256).bfloat16()
            assert torch.equal(prepared(x), prepared(x, None, None, torch.float32).bfloat16())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_visible(value: float, isa: str) -> None:
    torch.manual_seed(0)
    for made, shape in (
        (gguf_weight("q6_k", (5, 256)), (5, 256)),
        (grid_weight((5, 96), PackedInteger(8, 32)), (5, 96)),
    ):
        prepared = prepare(*made, shape)
        for dtype in TOLERANCE:
            x = torch.randn(3, shape[1]).to(dtype)
            x[1, 40] = value
            finite = prepared(x).isfinite()
            assert not finite[1].any()
            assert finite[0].all()
            assert finite[2].all()


def test_results_do_not_depend_on_threads_or_batch(isa: str) -> None:
    torch.manual_seed(0)
    shape = (67, 512)
    prepared = prepare(*gguf_weight("q5_k", shape), shape)
    x = torch.randn(8, 512).to(torch.bfloat16)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = prepared(x)
    torch.set_num_threads(2)
    assert torch.equal(prepared(x), alone)
    torch.set_num_threads(before)
    torch.testing.assert_close(torch.cat([prepared(row[None]) for row in x]), alone)
