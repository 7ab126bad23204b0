"""Every operator on a device that is not the CPU: its fake stays there, and its reference mixes no devices."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from compress_kernels.ops.table import prepare
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.gpu.weights import ODD, Weight, weights

DEVICE = "standin"
GPU = torch.device("cuda", 0)
SMALL = [weight for weight in weights() if weight.shape == ODD or weight.shape == (33, 256)]


@pytest.mark.parametrize("weight", SMALL, ids=lambda weight: weight.name)
def test_the_reference_stays_on_the_device(weight: Weight, traffic: Any) -> None:
    torch.manual_seed(0)
    layout, tensors = weight.make()
    placed = {name: tensor.to(DEVICE) for name, tensor in tensors.items()}
    prepared = prepare(layout, placed, weight.shape, backend="reference")
    beside = prepare(layout, tensors, weight.shape, backend="reference")
    x = torch.randn(2, weight.shape[1])
    bias = torch.randn(weight.shape[0])
    y = prepared(x.to(DEVICE), bias.to(DEVICE))
    assert y.device.type == DEVICE
    assert torch.equal(y.cpu(), beside(x, bias))
    ids = torch.tensor([3, 0])
    assert torch.equal(prepared.rows(ids.to(DEVICE), torch.bfloat16).cpu(), beside.rows(ids, torch.bfloat16))
    tracked = x.to(DEVICE).requires_grad_()
    (gradient,) = torch.autograd.grad(prepared(tracked).sum(), tracked)
    assert gradient.device.type == DEVICE


def test_the_operators_of_a_gpu_are_registered() -> None:
    names = {str(op) for op in torch._C._dispatch_get_all_op_names()}
    for operator in ("words_triton", "sparse_triton", "int8_triton", "nf4_bitsandbytes", "gguf_reference"):
        for kind in ("", "_gather", "_gradient"):
            assert f"compress_kernels::{operator}{kind}" in names


@pytest.mark.parametrize("weight", SMALL, ids=lambda weight: weight.name)
def test_fakes_stay_on_the_gpu(weight: Weight) -> None:
    layout, tensors = weight.make()
    operands = prepare(layout, tensors, weight.shape, backend="reference")
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        x = torch.empty(2, 3, weight.shape[1], device=GPU, dtype=torch.bfloat16)
        placed = _moved(operands.operands)
        y = operands.backend.run(x, placed, None, None, torch.float32)
        assert (y.device, y.dtype, tuple(y.shape)) == (GPU, torch.float32, (2, 3, weight.shape[0]))


def _moved(value: Any) -> Any:
    """Operands with empty tensors of a GPU in the place of theirs."""
    if isinstance(value, torch.Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device=GPU)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _moved(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    if isinstance(value, tuple):
        return tuple(map(_moved, value))
    return value
