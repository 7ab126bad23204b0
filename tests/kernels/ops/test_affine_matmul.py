"""The product with affine weights on the CPU, against the layer that holds the dequantized weight."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from compress_kernels.layouts import AffineInteger
from compress_kernels.ops import affine_matmul
from compress_kernels.ops.table import prepare
from torch import Tensor

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}


def made(shape: tuple[int, int], bits: int, group: int) -> tuple[AffineInteger, dict[str, Tensor]]:
    """Random codes; biases that put zero somewhere inside the range, no whole number of steps from its end."""
    generator = torch.Generator().manual_seed(bits)
    layout = AffineInteger(bits, group)
    codes = torch.randint(0, 1 << bits, shape, generator=generator)
    scale = torch.rand(shape[0], shape[1] // group, generator=generator) * 0.1 + 0.01
    zero = ((1 << bits) - 1) * (0.3 + 0.4 * torch.rand(scale.shape, generator=generator))
    return layout, layout.encode(codes, scale, -zero * scale)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("bits", "group"), [(2, 32), (3, 64), (4, 128), (5, 32), (6, 64), (8, 64)])
def test_equals_dequantized(backend: str, bits: int, group: int) -> None:
    shape = (33, 384)
    layout, tensors = made(shape, bits, group)
    prepared = prepare(layout, tensors, shape, backend=backend)
    for rows, dtype in itertools.product((1, 5, 17, 130), TOLERANCE):
        torch.manual_seed(rows)
        x = torch.randn(rows, 2 * shape[1]).to(dtype)[:, ::2]
        bias, residual = torch.randn(shape[0]), torch.randn(rows, shape[0])
        y = prepared(x, bias, residual, torch.float32).double()
        expected = x.double() @ layout.decode(tensors, shape, torch.float64).T + bias + residual
        assert (y - expected).norm() / expected.norm() < TOLERANCE[dtype], (rows, dtype)
        assert prepared(x).dtype == dtype


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_rows_and_gradients(backend: str) -> None:
    shape = (32, 128)
    layout, tensors = made(shape, 4, 32)
    prepared, dense = (
        affine_matmul.prepare(layout, tensors, shape, backend=backend),
        layout.decode(tensors, shape, torch.float32),
    )
    ids = torch.tensor([[3, 0], [31, 3]])
    torch.testing.assert_close(prepared.rows(ids, torch.float32), dense[ids], rtol=0, atol=1e-6)
    x = torch.randn(2, 3, 128, requires_grad=True)
    bias, residual = torch.randn(32, requires_grad=True), torch.randn(2, 3, 32, requires_grad=True)
    found = torch.autograd.grad(prepared(x, bias, residual).square().sum(), (x, bias, residual))
    wanted = torch.autograd.grad((F.linear(x, dense, bias) + residual).square().sum(), (x, bias, residual))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_empty_and_bad_input() -> None:
    layout, tensors = made((32, 128), 4, 32)
    prepared = affine_matmul.prepare(layout, tensors, (32, 128))
    assert prepared(torch.empty(2, 0, 128)).shape == (2, 0, 32)
    with pytest.raises(ValueError, match="features"):
        prepared(torch.randn(2, 127))
    with pytest.raises(ValueError, match="biases"):
        affine_matmul.prepare(layout, {**tensors, "biases": tensors["biases"][1:]}, (32, 128))
    with pytest.raises(ValueError, match="lacks weight"):
        affine_matmul.prepare(layout, {"scales": tensors["scales"]}, (32, 128))
