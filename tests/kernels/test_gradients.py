"""Gradients through packed operators equal those through the layer that holds the decoded weight."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compress_kernels import gradients
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
)
from compress_kernels.modules import PackedLinear
from compress_kernels.ops.table import prepare
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

SHAPE = (48, 128)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 1e-2}
GRID = PackedInteger(4, 32, False)


def nonzero_mask(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    if kind == "n:m":
        order = torch.rand(SHAPE[0], SHAPE[1] // 4, 4, generator=generator).argsort(-1)
        return (order < 2).view(SHAPE)
    return torch.rand(SHAPE, generator=generator) < 0.5


def codes_of(bits: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 1 << bits, SHAPE, generator=generator)
    scale = torch.rand(SHAPE[0], groups, generator=generator) * 0.05 + 0.01
    return codes, scale, torch.randint(0, 1 << bits, (SHAPE[0], groups), generator=generator)


def low_rank() -> tuple[Layout, dict[str, Tensor]]:
    left, right = torch.randn(SHAPE[0], 8) * 0.1, torch.randn(8, SHAPE[1])
    dense = Dense()
    return LowRank(8), LowRank(8).encode(dense.encode(left), dense.encode(right))


def case(name: str) -> tuple[Layout, dict[str, Tensor]]:
    """A layout and its tensors for a weight of :data:`SHAPE`."""
    torch.manual_seed(0)
    weight = torch.randn(SHAPE) * 0.1
    if name.startswith("w"):
        bits = int(name[1])
        layout = PackedInteger(bits, 32, "sym" in name)
        codes, scale, zero = codes_of(bits, 4)
        return layout, layout.encode(codes, scale, None if layout.symmetric else zero)
    if name == "per-tensor":
        tensor_wide = PackedInteger(4, "tensor")
        return tensor_wide, tensor_wide.encode(codes_of(4, 1)[0], torch.full((1, 1), 0.02))
    if name == "int8":
        plain = PlainInteger(8, "channel")
        return plain, plain.encode(codes_of(8, 1)[0], codes_of(8, 1)[1] * 0.05)
    if name == "nf4":
        nf4 = NormalFloat4(64)
        return nf4, nf4.encode(codes_of(4, 1)[0], torch.rand(SHAPE[0], 2) * 0.1 + 0.01)
    if name == "dense":
        return Dense(), Dense().encode(weight)
    if name == "low-rank":
        return low_rank()
    if name == "columns":
        some = Columns(5)
        return some, some.encode(torch.tensor([0, 3, 50, 94, 127]), Dense().encode(torch.randn(SHAPE[0], 5)))
    if name == "sum":
        parts = [case("w4"), low_rank()]
        layout_of = SumOf(tuple(part for part, _ in parts))
        return layout_of, layout_of.encode(tuple(tensors for _, tensors in parts))
    kind, _, coded = name.partition("+")
    mask, grid = nonzero_mask(kind), GRID if coded else None
    sparse = SparseNM(2, 4, grid) if kind == "n:m" else SparseBitmask(int(mask.sum()), grid)
    if coded:
        return sparse, sparse.encode_codes(*codes_of(4, 4), mask)
    return sparse, sparse.encode(weight, mask)


CASES = [
    "w2",
    "w3sym",
    "w4",
    "w7",
    "w8sym",
    "per-tensor",
    "int8",
    "nf4",
    "dense",
    "low-rank",
    "columns",
    "sum",
]
SPARSE = ["n:m", "n:m+codes", "bitmask", "bitmask+codes"]


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def compare(name: str, dtype: torch.dtype, backend: str, run: Any = None) -> None:
    """Gradients by x, bias and residual of a scalar of the output, against the decoded weight in float64."""
    layout, tensors = case(name)
    prepared = prepare(layout, tensors, SHAPE, backend=backend)
    dense = layout.decode(tensors, SHAPE, dtype).double()
    torch.manual_seed(5)
    # Strides that are no multiple of the row: the operators see a view.
    x = torch.randn(3, 7, SHAPE[1] * 2).to(dtype)[..., ::2].requires_grad_()
    bias = torch.randn(SHAPE[0]).to(dtype).requires_grad_()
    residual = torch.randn(3, 7, SHAPE[0]).to(dtype).requires_grad_()
    pull = torch.randn(3, 7, SHAPE[0]).to(dtype)
    output = prepared(x, bias, residual) if run is None else run(prepared, x, bias, residual)
    found = torch.autograd.grad(output, [x, bias, residual], pull)
    expected = (pull.double() @ dense, pull.double().sum((0, 1)), pull.double())
    for gradient, reference, of in zip(found, expected, (x, bias, residual), strict=True):
        assert gradient.dtype == of.dtype
        assert gradient.shape == of.shape
        assert relative(gradient, reference) < TOLERANCE[dtype], name


@pytest.mark.parametrize("name", [*CASES, *SPARSE])
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_like_the_decoded_layer(name: str, backend: str, dtype: torch.dtype) -> None:
    compare(name, dtype, backend)


def test_triton_in_the_interpreter() -> None:
    """In a process of its own: the interpreter has to be asked for before anything imports triton."""
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_bitsandbytes() -> None:
    compare("nf4", torch.bfloat16, "bitsandbytes")


@pytest.mark.parametrize("name", ["w4", "nf4", "bitmask", "int8"])
def test_under_compile(name: str) -> None:
    def run(prepared: Any, x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        compiled = torch.compile(lambda *given: prepared(*given), fullgraph=True, backend="aot_eager")
        product: Tensor = compiled(x, bias, residual)
        return product

    compare(name, torch.float32, "auto", run)


def test_under_activation_checkpointing() -> None:
    def run(prepared: Any, x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        product: Tensor = checkpoint(prepared, x, bias, residual, use_reentrant=False)
        return product

    compare("w4", torch.float32, "auto", run)


@pytest.mark.parametrize("name", ["w3sym", "nf4", "int8", "n:m+codes", "bitmask"])
def test_rows_in_pieces(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "_ELEMENTS", 11 * SHAPE[1])
    compare(name, torch.float32, "reference")


def test_a_second_derivative_is_refused() -> None:
    layout, tensors = case("w4")
    x = torch.randn(2, SHAPE[1], requires_grad=True)
    pull = torch.ones(2, SHAPE[0], requires_grad=True)
    (first,) = torch.autograd.grad(prepare(layout, tensors, SHAPE)(x), x, pull, create_graph=True)
    with pytest.raises(RuntimeError, match="autograd formula"):
        first.sum().backward()


def test_no_tokens() -> None:
    layout, tensors = case("w4")
    x = torch.randn(0, SHAPE[1], requires_grad=True)
    prepare(layout, tensors, SHAPE)(x).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == (0, SHAPE[1])


def test_nothing_is_recorded_without_gradients() -> None:
    layout, tensors = case("w4")
    prepared = prepare(layout, tensors, SHAPE)
    with torch.no_grad():
        assert prepared(torch.randn(2, SHAPE[1], requires_grad=True)).grad_fn is None
    assert prepared(torch.randn(2, SHAPE[1])).grad_fn is None


def test_two_layers_train_what_lies_before_them() -> None:
    """An embedding before packed layers follows the same curve as before decoded ones."""
    layers = [PackedLinear(*_square(seed)) for seed in (0, 1)]
    decoded = [layer.dequantize(torch.float32) for layer in layers]
    losses = []
    for packed in (True, False):
        torch.manual_seed(0)
        embedding = nn.Parameter(torch.randn(16, 64))
        optimiser = torch.optim.SGD([embedding], lr=0.5)
        curve = []
        for _ in range(5):
            hidden = embedding
            for layer, weight in zip(layers, decoded, strict=True):
                hidden = torch.tanh(layer(hidden) if packed else F.linear(hidden, weight))
            loss = hidden.square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            curve.append(loss.item())
        losses.append(curve)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][-1] < losses[0][0]


def _square(seed: int) -> tuple[Layout, tuple[int, int], dict[str, Tensor]]:
    torch.manual_seed(seed)
    layout = PackedInteger(4, 32)
    return layout, (64, 64), layout.encode(torch.randint(0, 16, (64, 64)), torch.rand(64, 2) * 0.1)


if __name__ == "__main__":
    for triton_case in ("w3sym", "w4", "sum", "int8", *SPARSE):
        for triton_dtype in (torch.float32, torch.float16):
            compare(triton_case, triton_dtype, "triton")
