"""2:4 codes with the words of sixteen rows side by side: the same products, rows and tensors as those on disk give."""

from __future__ import annotations

import copy

import pytest
import torch
from compress_kernels import native
from compress_kernels.layouts import PackedInteger, SparseNM
from compress_kernels.modules import PackedLinear
from compress_kernels.ops import sparse_matmul
from compress_kernels.ops.dispatch import Prepared
from compress_kernels.ops.sparse_matmul.interleave import interleave

from benchmarks.speed.cases import TOLERANCE, sparse_weight

VECTORISED = native.load().vectorised
ISAS = native.available() or ("portable",)
KERNELS = pytest.mark.skipif(not VECTORISED, reason="a CPU without AVX-512 reads rows as they lie on disk")
ROWS = (1, 2, 3, 4, 5, 8, 9, 33, 100)


def arranged(shape: tuple[int, int], group: int | str) -> tuple[Prepared, torch.Tensor]:
    """The interleaved weight, and the decoded one in fp64."""
    layout, tensors = sparse_weight(shape, "2:4", PackedInteger(4, group))
    prepared = sparse_matmul.prepare(layout, tensors, shape).arranged()
    assert prepared.operands.interleaved == VECTORISED
    return prepared, layout.decode(tensors, shape, torch.float64)


def error(y: torch.Tensor, expected: torch.Tensor) -> float:
    return float((y.double() - expected).norm() / expected.norm())


@KERNELS
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("group", "shape"),
    [
        (32, (16, 96)),
        (64, (48, 576)),
        ("channel", (32, 416)),
        ("tensor", (16, 160)),
        (160, (32, 320)),
        (64, (16, 4096)),  # 400 tokens are more than are multiplied at once
    ],
)
def test_products_and_rows(group: int | str, shape: tuple[int, int], isa: str) -> None:
    torch.manual_seed(shape[1])
    prepared, weight = arranged(shape, group)
    with native.using(isa):
        for dtype, tolerance in TOLERANCE.items():
            for count in ROWS:
                x = torch.randn(count, shape[1]).to(dtype)
                bias, residual = torch.randn(shape[0]), torch.randn(count, shape[0])
                y = prepared(x, bias, residual, torch.float32) - bias - residual
                assert error(y, x.double() @ weight.T) < tolerance, (dtype, count)
        ids = torch.tensor([[3, 15], [0, shape[0] - 1]])
        torch.testing.assert_close(prepared.rows(ids, torch.float32), weight[ids].float())


@KERNELS
def test_products_are_finer_than_bf16_and_the_same_in_any_batch() -> None:
    torch.manual_seed(0)
    prepared, weight = arranged((64, 576), 64)
    x = torch.randn(8, 576).to(torch.bfloat16)
    wanted = x.double() @ weight.T
    for count in (1, 4, 7, 8):
        y = prepared(x[:count], None, None, torch.float32)
        assert error(y, wanted[:count]) < 1e-4
        assert torch.equal(y[:1], prepared(x[:1], None, None, torch.float32))


@KERNELS
def test_infinite_and_nan_inputs_stay_visible() -> None:
    prepared, _ = arranged((32, 96), 32)
    for value in (float("nan"), float("inf")):
        x = torch.ones(1, 96, dtype=torch.bfloat16)
        x[0, 5] = value
        assert not prepared(x).isfinite().any()


@KERNELS
def test_gradients() -> None:
    prepared, weight = arranged((80, 96), 32)
    x = torch.randn(3, 96, requires_grad=True)
    (gradient,) = torch.autograd.grad(prepared(x).sum(), x)
    torch.testing.assert_close(gradient, weight.sum(0).float().expand(3, 96))


@pytest.mark.parametrize(
    ("shape", "pattern", "grid"),
    [
        ((33, 96), "2:4", PackedInteger(4, 32)),
        ((32, 96), "2:4", PackedInteger(4, 32, False)),
        ((32, 96), "2:4", PackedInteger(3, 32)),
        ((32, 96), "2:4", PackedInteger(4, 24)),
        ((32, 96), "2:4", None),
    ],
)
def test_what_has_no_such_kernel_stays_as_it_is(
    shape: tuple[int, int], pattern: str, grid: PackedInteger | None
) -> None:
    layout, tensors = sparse_weight(shape, pattern, grid)
    operands = sparse_matmul.prepare(layout, tensors, shape, backend="reference").operands  # type: ignore[arg-type]
    assert interleave(operands) is operands


def test_another_pattern_stays_as_it_is() -> None:
    layout = SparseNM(4, 8, PackedInteger(4, 32))
    mask = torch.tensor([True] * 4 + [False] * 4).repeat(32, 12)
    tensors = layout.encode_codes(torch.randint(0, 16, (32, 96)), torch.rand(32, 3), None, mask)
    operands = sparse_matmul.prepare(layout, tensors, (32, 96), backend="reference").operands
    assert interleave(operands) is operands


@KERNELS
def test_a_module_holds_one_order_and_gives_the_other_back() -> None:
    torch.manual_seed(0)
    shape = (32, 96)
    layout, tensors = sparse_weight(shape, "2:4", PackedInteger(4, 32))
    given = {name: tensor.clone() for name, tensor in tensors.items()}
    layer = PackedLinear(layout, shape, tensors)
    x = torch.randn(2, 96)
    y = layer(x)
    assert all(torch.equal(tensor, given[name]) for name, tensor in tensors.items())
    prepared = layer.prepare()
    assert prepared.operands.interleaved
    starts = prepared.operands.start.nbytes
    assert prepared.nbytes - starts <= sum(tensor.nbytes for tensor in given.values())
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, given[name])
    for again in (layer, layer.to("cpu"), copy.deepcopy(layer)):
        assert torch.equal(again(x), y)
    assert torch.equal(layer.dequantize(torch.float32), layout.decode(given, shape, torch.float32))


@KERNELS
def test_what_a_module_owns_is_changed_in_place_and_places_go_where_weights_lie() -> None:
    shape = (32, 96)
    layout, tensors = sparse_weight(shape, "2:4", PackedInteger(4, 32))
    put: list[int] = []

    def room(tensor: torch.Tensor) -> torch.Tensor:
        made = tensor.clone()
        put.append(made.data_ptr())
        return made

    layer = PackedLinear(layout, shape, tensors)
    layer.room = room
    held = layer.prepare().operands
    assert held.values.data_ptr() == tensors["weight_packed"].data_ptr()
    assert held.scale.data_ptr() == tensors["weight_scale"].data_ptr()
    assert put == [held.mask.data_ptr()]
