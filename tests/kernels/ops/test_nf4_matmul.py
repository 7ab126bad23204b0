"""The NF4 product on the CPU, against the layer that holds the dequantized weight."""

from __future__ import annotations

import itertools

import pytest
import torch
from compress_kernels.layouts import NormalFloat4
from compress_kernels.ops import nf4_matmul
from compress_kernels.ops.dispatch import BackendError
from torch import Tensor

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}


def made(shape: tuple[int, int], block: int) -> tuple[NormalFloat4, dict[str, Tensor]]:
    layout = NormalFloat4(block)
    codes = torch.randint(0, 16, shape)
    return layout, layout.encode(codes, torch.rand(shape[0], shape[1] // block) * 0.1 + 0.01)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("shape", "block"), [((33, 96), 32), ((40, 384), 64), ((17, 1152), 128), ((16, 64), 64)]
)
def test_equals_dequantized(backend: str, shape: tuple[int, int], block: int) -> None:
    torch.manual_seed(0)
    layout, tensors = made(shape, block)
    prepared = nf4_matmul.prepare(layout, tensors, shape, backend=backend)
    for rows, dtype in itertools.product((1, 3, 8, 17, 129, 400), TOLERANCE):
        x = torch.randn(rows, 2 * shape[1]).to(dtype)[:, ::2]
        bias, residual = torch.randn(shape[0]), torch.randn(rows, shape[0])
        y = prepared(x, bias, residual, torch.float32).double()
        expected = x.double() @ layout.decode(tensors, shape, dtype).double().T + bias + residual
        assert (y - expected).norm() / expected.norm() < TOLERANCE[dtype], (rows, dtype)
        assert prepared(x).dtype == dtype


def test_empty_and_bad_input() -> None:
    layout, tensors = made((33, 96), 32)
    prepared = nf4_matmul.prepare(layout, tensors, (33, 96))
    assert prepared(torch.empty(2, 0, 96)).shape == (2, 0, 33)
    with pytest.raises(ValueError, match="features"):
        prepared(torch.randn(2, 95))
    with pytest.raises(ValueError, match="weight_absmax"):
        nf4_matmul.prepare(layout, {**tensors, "weight_absmax": tensors["weight_absmax"][1:]}, (33, 96))
    with pytest.raises(BackendError, match="choose"):
        nf4_matmul.prepare(layout, tensors, (33, 96), backend="triton")


def test_bitsandbytes_computes_the_same() -> None:
    torch.manual_seed(0)
    shape = (32, 128)
    layout, tensors = made(shape, 64)
    if nf4_matmul.BACKENDS["bitsandbytes"].unsupported_reason(torch.device("cpu")) is not None:
        with pytest.raises(BackendError, match="not installed"):
            nf4_matmul.prepare(layout, tensors, shape, backend="bitsandbytes")
        return
    theirs = nf4_matmul.prepare(layout, tensors, shape, backend="bitsandbytes")
    ours = nf4_matmul.prepare(layout, tensors, shape)
    for rows in (1, 5):
        x = torch.randn(rows, shape[1]).to(torch.bfloat16)
        torch.testing.assert_close(theirs(x), ours(x), rtol=3e-2, atol=3e-2)
