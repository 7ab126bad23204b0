"""Backward of every packed product, against the float64 gradient of the layer that holds the decoded weight."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from compress_kernels.layouts import (
    Columns,
    Dense,
    GGUFBlocks,
    Layout,
    LowRank,
    NormalFloat4,
    PackedInteger,
    PlainInteger,
    SparseBitmask,
    SparseNM,
    SumOf,
    TableCodes,
)
from compress_kernels.layouts.gguf import BlockFields
from compress_kernels.ops import autograd
from compress_kernels.ops.dispatch import Prepared
from compress_kernels.ops.table import prepare
from compress_kernels.value_types import table_values
from torch import Tensor
from torch.utils.checkpoint import checkpoint

SHAPE = (33, 96)
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
Made = tuple[Layout, dict[str, Tensor]]


def packed(bits: int = 4, group: int | str = 32, symmetric: bool = True) -> Made:
    layout = PackedInteger(bits, group, symmetric)  # type: ignore[arg-type]
    rows = 1 if group == "tensor" else SHAPE[0]
    groups = SHAPE[1] // group if isinstance(group, int) else 1
    zero = None if symmetric else torch.randint(0, 1 << bits, (rows, groups))
    codes = torch.randint(0, 1 << bits, SHAPE)
    return layout, layout.encode(codes, torch.rand(rows, groups) * 0.1 + 0.01, zero)


def int8(group: int | str) -> Made:
    layout = PlainInteger(8, group)  # type: ignore[arg-type]
    rows, groups = 1 if group == "tensor" else SHAPE[0], 3 if isinstance(group, int) else 1
    return layout, layout.encode(torch.randint(0, 256, SHAPE), torch.rand(rows, groups) * 0.02 + 0.001)


def nf4() -> Made:
    layout = NormalFloat4(32)
    return layout, layout.encode(torch.randint(0, 16, SHAPE), torch.rand(33, 3) + 0.1)


def sparse(pattern: str, grid: PackedInteger | None = None) -> Made:
    if pattern == "2:4":
        chosen = torch.rand(SHAPE[0], SHAPE[1] // 4, 4).argsort(-1)[..., :2]
        mask = torch.zeros(SHAPE[0], SHAPE[1] // 4, 4, dtype=torch.bool).scatter_(2, chosen, True).view(SHAPE)
    else:
        mask = torch.rand(SHAPE) < 0.5
    layout = SparseNM(2, 4, grid) if pattern == "2:4" else SparseBitmask(int(mask.sum()), grid)
    if grid is None:
        return layout, layout.encode(torch.randn(SHAPE), mask)
    codes, zero = torch.randint(0, 1 << grid.bits, SHAPE), torch.randint(0, 1 << grid.bits, (33, 3))
    return layout, layout.encode_codes(codes, torch.rand(33, 3) * 0.1 + 0.01, zero, mask)


def table(kind: str, bits: int) -> Made:
    layout = TableCodes(kind, bits, 32)
    codes = torch.randint(0, len(table_values(kind, bits)), SHAPE)
    return layout, layout.encode(codes, torch.rand(33, 3) * 0.1 + 0.01)


def gguf() -> Made:
    layout = GGUFBlocks("q8_0")
    return layout, layout.encode(BlockFields(torch.randint(0, 256, SHAPE), torch.rand(33, 3) * 0.01))


def low_rank() -> Made:
    layout = LowRank(8)
    return layout, layout.encode(Dense().encode(torch.randn(33, 8)), Dense().encode(torch.randn(8, 96)))


def columns() -> Made:
    layout = Columns(5)
    return layout, layout.encode(torch.tensor([0, 3, 50, 94, 95]), Dense().encode(torch.randn(33, 5)))


def total(*made: Made) -> Made:
    layout = SumOf(tuple(part for part, _ in made))
    return layout, layout.encode(tuple(tensors for _, tensors in made))


LAYOUTS: dict[str, Callable[[], Made]] = {
    "packed 4": packed,
    "packed 3 asymmetric": lambda: packed(3, 32, False),
    "packed 8 channel": lambda: packed(8, "channel"),
    "packed 2 tensor asymmetric": lambda: packed(2, "tensor", False),
    "int8": lambda: int8("channel"),
    "int8 tensor": lambda: int8("tensor"),
    "int8 groups": lambda: int8(32),
    "nf4": nf4,
    "gguf": gguf,
    "shift": lambda: table("shift", 3),
    "rf8": lambda: table("rf8", 8),
    "bitmask": lambda: sparse("bitmask"),
    "bitmask 3 bits": lambda: sparse("bitmask", PackedInteger(3, 32, False)),
    "2:4": lambda: sparse("2:4"),
    "2:4 4 bits": lambda: sparse("2:4", PackedInteger(4, 32, False)),
    "dense": lambda: (Dense(), Dense().encode(torch.randn(SHAPE))),
    "low rank": low_rank,
    "columns": columns,
    "packed + low rank + columns": lambda: total(packed(), low_rank(), columns()),
}
CASES = [(label, backend) for label in LAYOUTS for backend in ("auto", "reference")]
CASES.append(("nf4", "bitsandbytes"))


def made(label: str, backend: str = "auto") -> tuple[Prepared, Tensor]:
    """The prepared weight and its dense values in float64."""
    torch.manual_seed(0)
    layout, tensors = LAYOUTS[label]()
    return prepare(layout, tensors, SHAPE, backend=backend), layout.decode(tensors, SHAPE, torch.float64)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def with_gradient(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype).requires_grad_()


@pytest.mark.parametrize(("label", "backend"), CASES)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_gradients_are_the_decoded_layers(label: str, backend: str, dtype: torch.dtype) -> None:
    prepared, weight = made(label, backend)
    x, bias, residual = with_gradient(2, 5, 96, dtype=dtype), with_gradient(33), with_gradient(2, 5, 33)
    y = prepared(x, bias, residual)
    with torch.no_grad():
        assert torch.equal(y, prepared(x, bias, residual)), "with and without a graph differ"
    dy = torch.randn_like(y)
    y.backward(dy)
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert relative(x.grad, dy.double() @ weight) < TOLERANCE[dtype]
    assert bias.grad is not None
    assert relative(bias.grad, dy.double().sum((0, 1))) < TOLERANCE[dtype]
    assert residual.grad is not None
    assert relative(residual.grad, dy) < TOLERANCE[dtype]


@pytest.mark.parametrize(("label", "backend"), CASES)
def test_the_same_under_compile_in_one_graph(label: str, backend: str) -> None:
    prepared, _ = made(label, backend)
    bias = with_gradient(33)

    def loss(x: Tensor) -> Tensor:
        return prepared(x * 2, bias).square().sum()

    x = with_gradient(3, 96)
    expected = torch.autograd.grad(loss(x), (x, bias))
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for found, right in zip(torch.autograd.grad(compiled(x), (x, bias)), expected, strict=True):
        torch.testing.assert_close(found, right)


@pytest.mark.parametrize(("label", "backend"), CASES)
def test_strides_checkpointing_and_no_rows(label: str, backend: str) -> None:
    prepared, _ = made(label, backend)
    wide = with_gradient(3, 192)
    (expected,) = torch.autograd.grad(prepared(wide[:, ::2].contiguous()).sum(0)[::2].sum(), wide)
    (strided,) = torch.autograd.grad(prepared(wide[:, ::2]).sum(0)[::2].sum(), wide)
    torch.testing.assert_close(strided, expected)
    again = checkpoint(prepared, wide[:, ::2], use_reentrant=False)
    assert isinstance(again, Tensor)
    (recomputed,) = torch.autograd.grad(again.sum(0)[::2].sum(), wide)
    torch.testing.assert_close(recomputed, expected)
    empty = with_gradient(0, 96)
    assert torch.autograd.grad(prepared(empty).sum(), empty)[0].shape == (0, 96)
    line = with_gradient(96)
    assert torch.autograd.grad(prepared(line).sum(), line)[0].shape == (96,)


@pytest.mark.parametrize(("label", "backend"), CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_in_pieces_as_at_once(
    label: str, backend: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autograd, "PIECE", 5 * 96)
    prepared, weight = made(label, backend)
    x = with_gradient(7, 96, dtype=dtype)
    y = prepared(x)
    dy = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, dy)
    assert relative(dx, dy.double() @ weight) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("label", "backend"), [case for case in CASES if case[0] not in ("dense", "low rank", "columns")]
)
def test_a_second_derivative_raises(label: str, backend: str) -> None:
    prepared, _ = made(label, backend)
    x = with_gradient(3, 96)
    (dx,) = torch.autograd.grad(prepared(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        dx.sum().backward()


def test_nothing_is_recorded_without_a_gradient() -> None:
    prepared, _ = made("packed 4")
    frozen = torch.randn(3, 96)
    assert not prepared(frozen, torch.randn(33)).requires_grad
    with torch.no_grad():
        assert not prepared(with_gradient(3, 96)).requires_grad
    with torch.inference_mode():
        assert prepared(with_gradient(3, 96)).is_inference()


def test_a_packed_tensor_that_requires_a_gradient_raises() -> None:
    torch.manual_seed(0)
    layout, tensors = packed()
    tensors["weight_scale"].requires_grad_()
    prepared = prepare(layout, tensors, SHAPE)
    with pytest.raises(RuntimeError, match="packed weights have no gradient"):
        prepared(with_gradient(3, 96))


def test_a_dense_factor_that_requires_a_gradient_gets_one() -> None:
    torch.manual_seed(0)
    weight = torch.randn(SHAPE).to(torch.bfloat16).requires_grad_()
    x = torch.randn(3, 96).to(torch.bfloat16)
    prepare(Dense(), {"weight": weight}, SHAPE)(x).sum().backward()
    assert weight.grad is not None
    assert relative(weight.grad, x.double().sum(0).expand(SHAPE)) < 1e-2


def test_no_activation_is_held_for_the_backward() -> None:
    prepared, _ = made("packed 4")
    saved: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    x = with_gradient(500, 96)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        prepared(x)
    assert saved
    assert all(tensor.numel() < x.numel() for tensor in saved)
