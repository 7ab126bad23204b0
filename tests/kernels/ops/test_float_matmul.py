"""The product with small floats, against the layer that holds the dequantized weight."""

from __future__ import annotations

import itertools

import pytest
import torch
from compress_kernels.layouts import PackedFloat
from compress_kernels.layouts.floats import rising_values
from compress_kernels.modules import PackedLinear
from compress_kernels.ops import float_matmul
from compress_kernels.ops.dispatch import BackendError
from torch import Tensor

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
LAYOUTS = [
    PackedFloat("fp8", "channel"),
    PackedFloat("fp8", "tensor"),
    PackedFloat("fp8", "block"),
    PackedFloat.of("mxfp8"),
    PackedFloat.of("mxfp4"),
    PackedFloat.of("nvfp4"),
]


def made(layout: PackedFloat, shape: tuple[int, int]) -> dict[str, Tensor]:
    codes = torch.randint(0, len(rising_values(layout.kind.element)), shape)
    scale = torch.exp2(torch.randint(-6, -2, layout.scale_grid(shape)).float())
    return layout.encode(codes, scale, torch.tensor([1.5]))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_equals_dequantized(backend: str, layout: PackedFloat) -> None:
    torch.manual_seed(0)
    for shape in ((33, 128), (160, 384)):
        tensors = made(layout, shape)
        prepared = float_matmul.prepare(layout, tensors, shape, backend=backend)
        for rows, dtype in itertools.product((1, 3, 17, 129), TOLERANCE):
            x = torch.randn(rows, 2 * shape[1]).to(dtype)[:, ::2]
            bias, residual = torch.randn(shape[0]), torch.randn(rows, shape[0])
            y = prepared(x, bias, residual, torch.float32).double()
            expected = x.double() @ layout.decode(tensors, shape, dtype).double().T + bias + residual
            assert (y - expected).norm() / expected.norm() < TOLERANCE[dtype], (rows, dtype)
            assert prepared(x).dtype == dtype


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_layer_has_a_gradient_by_its_input_and_gives_its_tensors_back(layout: PackedFloat) -> None:
    torch.manual_seed(0)
    tensors = made(layout, (48, 128))
    layer = PackedLinear(layout, (48, 128), dict(tensors))
    x = torch.randn(5, 128, requires_grad=True)
    layer(x).square().sum().backward()
    dense = layout.decode(tensors, (48, 128), torch.float32)
    expected = 2 * (x.detach() @ dense.T) @ dense
    torch.testing.assert_close(x.grad, expected, rtol=1e-3, atol=1e-3)
    saved = layer.state_dict()
    assert saved.keys() == tensors.keys()
    assert all(torch.equal(saved[name].float(), tensor.float()) for name, tensor in tensors.items())


def test_empty_and_bad_input() -> None:
    layout = PackedFloat.of("nvfp4")
    tensors = made(layout, (33, 96))
    prepared = float_matmul.prepare(layout, tensors, (33, 96))
    assert prepared(torch.empty(2, 0, 96)).shape == (2, 0, 33)
    with pytest.raises(ValueError, match="features"):
        prepared(torch.randn(2, 95))
    with pytest.raises(ValueError, match="lacks weight_scale"):
        float_matmul.prepare(layout, {}, (33, 96))
    with pytest.raises(ValueError, match="lacks weight_global_scale"):
        short = {name: tensor for name, tensor in tensors.items() if name != "weight_global_scale"}
        float_matmul.prepare(layout, short, (33, 96))
    with pytest.raises(BackendError, match="needs a CUDA device"):
        float_matmul.prepare(layout, tensors, (33, 96), backend="triton")


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_rows_by_their_ids(backend: str, layout: PackedFloat) -> None:
    torch.manual_seed(0)
    shape, ids = (160, 384), torch.tensor([[159, 0], [7, 7]])
    tensors = made(layout, shape)
    prepared = float_matmul.prepare(layout, tensors, shape, backend=backend)
    for dtype in TOLERANCE:
        torch.testing.assert_close(prepared.rows(ids, dtype), layout.decode(tensors, shape, dtype)[ids])
