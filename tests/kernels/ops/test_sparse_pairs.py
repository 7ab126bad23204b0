"""4-bit codes under a bit mask as pairs of rows: the same products, rows and tensors as those on disk give."""

from __future__ import annotations

import copy

import pytest
import torch
from compress_kernels import native
from compress_kernels.layouts import PackedInteger, SparseBitmask
from compress_kernels.modules import PackedLinear
from compress_kernels.ops import sparse_matmul
from compress_kernels.ops.dispatch import Prepared
from compress_kernels.ops.sparse_matmul.interleave import interleave, remade
from torch import Tensor

from benchmarks.speed.cases import TOLERANCE, grid_values, sparse_weight

VECTORISED = native.load().vectorised
ISAS = native.available() or ("portable",)
KERNELS = pytest.mark.skipif(not VECTORISED, reason="a CPU without AVX-512 reads rows as they lie on disk")
ROWS = (1, 2, 3, 4, 5, 8, 9, 33, 100)


def masked_weight(grid: PackedInteger, mask: Tensor) -> tuple[SparseBitmask, dict[str, Tensor]]:
    """Random codes where ``mask`` is true."""
    layout = SparseBitmask(int(mask.sum()), grid)
    return layout, layout.encode_codes(*grid_values((mask.shape[0], mask.shape[1]), grid), mask)


def arranged(grid: PackedInteger, mask: Tensor) -> tuple[Prepared, Tensor]:
    """The weight as pairs, and the decoded one in fp64."""
    layout, tensors = masked_weight(grid, mask)
    shape = (mask.shape[0], mask.shape[1])
    prepared = sparse_matmul.prepare(layout, tensors, shape).arranged()
    assert prepared.operands.interleaved == VECTORISED
    return prepared, layout.decode(tensors, shape, torch.float64)


def random_mask(shape: tuple[int, int], density: float = 0.5) -> Tensor:
    """Each weight kept by itself, but for a stretch of nothing and one of everything."""
    mask = torch.rand(shape) < density
    mask[:, 32:40], mask[:, 40:48] = False, True
    return mask


def error(y: Tensor, expected: Tensor) -> float:
    return float((y.double() - expected).norm() / expected.norm())


@KERNELS
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("group", "shape"),
    [
        (32, (16, 96)),
        (64, (48, 576)),
        (128, (64, 256)),
        ("channel", (80, 416)),
        ("tensor", (32, 160)),
        (160, (32, 320)),
        (64, (32, 4096)),  # 400 tokens are more than are multiplied at once
    ],
)
def test_products_and_rows(group: int | str, shape: tuple[int, int], symmetric: bool, isa: str) -> None:
    torch.manual_seed(shape[1])
    prepared, weight = arranged(PackedInteger(4, group, symmetric), random_mask(shape))  # type: ignore[arg-type]
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
@pytest.mark.parametrize("density", [0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
def test_products_at_any_density(density: float) -> None:
    torch.manual_seed(3)
    prepared, weight = arranged(PackedInteger(4, 64, False), torch.rand(64, 192) < density)
    x = torch.randn(3, 192).to(torch.bfloat16)
    wanted = x.double() @ weight.T
    assert float((prepared(x, None, None, torch.float32) - wanted).norm()) <= 1e-4 * float(wanted.norm())


@KERNELS
def test_products_are_finer_than_bf16_and_the_same_in_any_batch_and_on_any_threads() -> None:
    torch.manual_seed(0)
    prepared, weight = arranged(PackedInteger(4, 64), random_mask((96, 576)))
    x = torch.randn(8, 576).to(torch.bfloat16)
    wanted = x.double() @ weight.T
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for count in (1, 4, 7, 8):
            y = prepared(x[:count], None, None, torch.float32)
            assert error(y, wanted[:count]) < 1e-4
            assert torch.equal(y[:1], prepared(x[:1], None, None, torch.float32))
    torch.set_num_threads(before)


@KERNELS
def test_infinite_and_nan_inputs_stay_visible() -> None:
    prepared, _ = arranged(PackedInteger(4, 32), random_mask((32, 96)))
    for value in (float("nan"), float("inf")):
        x = torch.ones(1, 96, dtype=torch.bfloat16)
        x[0, 5] = value
        assert not prepared(x).isfinite().any()


@KERNELS
def test_gradients() -> None:
    prepared, weight = arranged(PackedInteger(4, 32, False), random_mask((80, 96)))
    x = torch.randn(3, 96, requires_grad=True)
    (gradient,) = torch.autograd.grad(prepared(x).sum(), x)
    torch.testing.assert_close(gradient, weight.sum(0).float().expand(3, 96))


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((33, 96), PackedInteger(4, 32)),
        ((32, 100), PackedInteger(4, "channel")),
        ((32, 96), PackedInteger(4, 24)),
        ((32, 96), PackedInteger(3, 32)),
        ((32, 96), None),
    ],
)
def test_what_has_no_such_kernel_stays_as_it_is(shape: tuple[int, int], grid: PackedInteger | None) -> None:
    layout, tensors = sparse_weight(shape, "bitmask", grid)
    operands = sparse_matmul.prepare(layout, tensors, shape, backend="reference").operands  # type: ignore[arg-type]
    assert interleave(operands) is operands


@KERNELS
@pytest.mark.parametrize("group", [32, "channel", "tensor"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_module_holds_pairs_and_gives_the_tensors_on_disk_back(group: int | str, symmetric: bool) -> None:
    """Codes are random, so that many weights are kept with their zero point; the first and the last are, far from the next."""
    torch.manual_seed(0)
    shape, grid = (48, 640), PackedInteger(4, group, symmetric)  # type: ignore[arg-type]
    mask = random_mask(shape)
    mask[20:24] = False  # steps of more than 255, 510, …
    mask[0, 0] = mask[-1, -1] = True
    codes, scale, zero = grid_values(shape, grid)
    points = torch.full((1, 1), 8) if zero is None else zero
    codes[0, 0], codes[-1, -1] = points[0, 0], points[-1, -1]
    layout = SparseBitmask(int(mask.sum()), grid)
    tensors = layout.encode_codes(codes, scale, zero, mask)
    given = {name: tensor.clone() for name, tensor in tensors.items()}
    layer = PackedLinear(layout, shape, tensors)
    x = torch.randn(2, 640)
    y = layer(x)
    assert all(torch.equal(tensor, given[name]) for name, tensor in tensors.items())
    assert layer.prepare().operands.interleaved
    assert layer.get_buffer("weight_mask").numel() == layer.get_buffer("weight_packed").numel() == 0
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, given[name]), name
    for again in (layer, layer.to("cpu"), copy.deepcopy(layer)):
        assert torch.equal(again(x), y)
    assert torch.equal(layer.dequantize(torch.float32), layout.decode(given, shape, torch.float32))


@KERNELS
def test_memory() -> None:
    """Half a bit for the masks and four for each of the three quarters of pairs that keep something; dense codes have four."""
    torch.manual_seed(0)
    shape, grid = (256, 1024), PackedInteger(4, 128)
    codes, scale, _ = grid_values(shape, grid)
    codes[codes == 8] = 9
    mask = torch.rand(shape) < 0.5
    layout = SparseBitmask(int(mask.sum()), grid)
    tensors = layout.encode_codes(codes, scale, None, mask)
    held = PackedLinear(layout, shape, tensors).prepare()
    bits = 8 * (held.nbytes - held.operands.scale.nbytes) / mask.numel()
    assert 3.48 < bits < 3.53


@KERNELS
def test_what_a_module_owns_is_changed_in_place_and_pairs_go_where_weights_lie() -> None:
    layout, tensors = masked_weight(PackedInteger(4, 32), random_mask((32, 96)))
    put: list[int] = []

    def room(tensor: Tensor) -> Tensor:
        made = tensor.clone()
        put.append(made.data_ptr())
        return made

    layer = PackedLinear(layout, (32, 96), tensors)
    layer.room = room
    held = layer.prepare().operands
    assert held.scale.data_ptr() == tensors["weight_scale"].data_ptr()
    assert put == [held.values.data_ptr()]
    assert remade(layout) == ("weight_mask", "weight_packed")
    assert remade(SparseBitmask(1, PackedInteger(3, 32))) == ()
