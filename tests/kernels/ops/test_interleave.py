"""Weights with the words of sixteen rows side by side: the same products, rows and tensors as those on disk give."""

from __future__ import annotations

import copy

import pytest
import torch
from compress_kernels import native
from compress_kernels.layouts import PackedInteger
from compress_kernels.modules import PackedLinear
from compress_kernels.ops import packed_matmul
from compress_kernels.ops.packed_matmul import interleave
from compress_kernels.ops.sixteen import plain, plain_rows, woven

from benchmarks.speed.cases import TOLERANCE, grid_weight

VECTORISED = native.load().vectorised
ISAS = native.available() or ("portable",)
KERNELS = pytest.mark.skipif(not VECTORISED, reason="a CPU without AVX-512 reads rows as they lie on disk")
ROWS = (1, 2, 3, 4, 5, 8, 9, 33, 400)


def arranged(layout: PackedInteger, shape: tuple[int, int]) -> tuple[packed_matmul.Prepared, torch.Tensor]:
    """The interleaved weight, and the decoded one in fp64."""
    made, tensors = grid_weight(shape, layout)
    prepared = packed_matmul.prepare(layout, tensors, shape).arranged()
    assert prepared.operands.interleaved == VECTORISED
    return prepared, made.decode(tensors, shape, torch.float64)


def error(y: torch.Tensor, expected: torch.Tensor) -> float:
    return float((y.double() - expected).norm() / expected.norm())


@KERNELS
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_products_and_rows(bits: int, symmetric: bool, isa: str) -> None:
    torch.manual_seed(bits)
    for group, shape in (
        (32, (16, 96)),
        (64, (48, 576)),
        ("channel", (32, 416)),
        ("tensor", (16, 160)),
        (160, (32, 320)),
        (64, (16, 4096)),  # 400 tokens are more than are multiplied at once
    ):
        prepared, weight = arranged(PackedInteger(bits, group, symmetric), shape)
        with native.using(isa):
            for dtype, tolerance in TOLERANCE.items():
                for count in ROWS:
                    x = torch.randn(count, shape[1]).to(dtype)
                    bias, residual = torch.randn(shape[0]), torch.randn(count, shape[0])
                    y = prepared(x, bias, residual, torch.float32) - bias - residual
                    assert error(y, x.double() @ weight.T) < tolerance, (group, shape, dtype, count)
            ids = torch.tensor([[3, 15], [0, shape[0] - 1]])
            torch.testing.assert_close(prepared.rows(ids, torch.float32), weight[ids].float())


@KERNELS
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_bf16_products_are_finer_than_bf16(bits: int) -> None:
    """Sixteen bits of x: a digit that is lost would be seen."""
    torch.manual_seed(0)
    prepared, weight = arranged(PackedInteger(bits, 64), (64, 576))
    for count in (1, 4, 7):
        x = torch.randn(count, 576).to(torch.bfloat16)
        assert error(prepared(x, None, None, torch.float32), x.double() @ weight.T) < 1e-4


@KERNELS
def test_gradients_and_threads_and_whole_batches() -> None:
    torch.manual_seed(0)
    prepared, weight = arranged(PackedInteger(4, 32, False), (80, 96))
    x = torch.randn(3, 96, requires_grad=True)
    (gradient,) = torch.autograd.grad(prepared(x).sum(), x)
    torch.testing.assert_close(gradient, weight.sum(0).float().expand(3, 96))
    rounded = torch.randn(8, 96).to(torch.bfloat16)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    two = prepared(rounded)
    torch.set_num_threads(before)
    assert torch.equal(two, prepared(rounded))
    assert torch.equal(two[5:6], prepared(rounded[5:6]))


def test_order() -> None:
    tensor = torch.arange(48 * 3).view(48, 3)
    made = woven(tensor)
    assert made[0].tolist() == [0, 3, 6]
    assert torch.equal(plain(made), tensor)
    for rows in (slice(5, 37), slice(16, 32), slice(None), torch.tensor([40, 0, 17])):
        assert torch.equal(plain_rows(made, rows), tensor[rows])
    assert torch.equal(plain_rows(tensor[:1], slice(2, 4)), tensor[:1])


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("in_place", [False, True])
def test_order_in_place_and_in_a_copy(width: int, in_place: bool) -> None:
    tensor = torch.arange(48 * width).view(48, width)
    before = tensor.clone()
    made = woven(tensor, in_place=in_place)
    assert torch.equal(plain(made), before)
    assert (made is tensor) == in_place
    made.add_(1)
    assert torch.equal(tensor, before) != in_place


def test_one_number_a_row_with_other_strides_stays_as_it_is() -> None:
    tensor = torch.arange(48).view(1, 48).T
    assert woven(tensor, in_place=True) is tensor
    assert tensor.flatten().tolist() == list(range(48))


@pytest.mark.parametrize(
    ("shape", "bits", "group"), [((33, 96), 4, 32), ((32, 96), 5, 32), ((32, 100), 3, 20)]
)
def test_what_has_no_such_kernel_stays_as_it_is(shape: tuple[int, int], bits: int, group: int) -> None:
    _, tensors = grid_weight(shape, layout := PackedInteger(bits, group))
    operands = packed_matmul.operands(layout, tensors, shape)
    assert interleave(operands) is operands


@KERNELS
def test_a_module_holds_one_order_and_gives_the_other_back() -> None:
    torch.manual_seed(0)
    layout, shape = PackedInteger(4, 32, False), (32, 96)
    _, tensors = grid_weight(shape, layout)
    given = {name: tensor.clone() for name, tensor in tensors.items()}
    layer = PackedLinear(layout, shape, tensors)
    x = torch.randn(2, 96)
    y = layer(x)
    assert all(torch.equal(tensor, given[name]) for name, tensor in tensors.items())
    assert layer.get_buffer("weight_packed").numel() == layer.get_buffer("weight_scale").numel() == 0
    assert layer.prepare().operands.interleaved
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, given[name])
    for again in (layer, layer.to("cpu"), copy.deepcopy(layer)):
        assert torch.equal(again(x), y)
    assert torch.equal(layer.dequantize(torch.float32), layout.decode(given, shape, torch.float32))


@KERNELS
def test_what_a_module_owns_is_changed_in_place() -> None:
    layout, shape = PackedInteger(8, 32), (32, 96)
    _, tensors = grid_weight(shape, layout)
    layer = PackedLinear(layout, shape, tensors)
    layer.room = torch.Tensor.clone
    held = layer.prepare().operands
    assert held.codes.data_ptr() == tensors["weight_packed"].data_ptr()
    assert held.scale.data_ptr() == tensors["weight_scale"].data_ptr()
    layer.load_state_dict(layer.state_dict(), assign=True)
    assert layer.room is None
