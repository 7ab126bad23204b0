"""The int8 product on the CPU: tokens rounded as the reference rounds them, sums exact."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from compress_kernels.layouts import PlainInteger
from compress_kernels.ops import int8_matmul
from compress_kernels.ops.int8_matmul import cpu
from torch import Tensor

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}


def made(shape: tuple[int, int], group: str) -> tuple[PlainInteger, dict[str, Tensor]]:
    layout = PlainInteger(8, group)  # type: ignore[arg-type]
    rows = 1 if group == "tensor" else shape[0]
    return layout, layout.encode(torch.randint(0, 256, shape), torch.rand(rows, 1) * 0.02 + 0.001)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    ("shape", "group"), [((33, 96), "channel"), ((64, 4224), "channel"), ((40, 130), "tensor")]
)
def test_equals_reference(shape: tuple[int, int], group: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layout, tensors = made(shape, group)
    prepared = int8_matmul.prepare(layout, tensors, shape)
    exact = int8_matmul.prepare(layout, tensors, shape, backend="reference")
    for rows in (1, 3, 6, 7, 17, 129, 200):
        x = torch.randn(rows, 2 * shape[1]).to(dtype)[:, ::2]
        x[0] = 0
        bias, residual = torch.randn(shape[0]), torch.randn(rows, shape[0])
        y, expected = (each(x, bias, residual, torch.float32).double() for each in (prepared, exact))
        assert (y - expected).norm() / expected.norm() < TOLERANCE[dtype], rows


def test_extreme_codes_are_exact() -> None:
    shape = (16, 2048)
    layout = PlainInteger(8, "channel")
    tensors = layout.encode(torch.zeros(shape, dtype=torch.int64), torch.ones(16, 1))
    x = torch.full((7, 2048), -127.0)
    y = int8_matmul.prepare(layout, tensors, shape)(x)
    assert torch.equal(y, torch.full((7, 16), 127.0 * 128 * 2048))


def test_empty_and_bad_input() -> None:
    layout, tensors = made((33, 96), "channel")
    prepared = int8_matmul.prepare(layout, tensors, (33, 96))
    assert prepared(torch.empty(0, 96)).shape == (0, 33)
    with pytest.raises(ValueError, match="features"):
        prepared(torch.randn(2, 95))
    with pytest.raises(ValueError, match="weight_scale"):
        int8_matmul.prepare(layout, {**tensors, "weight_scale": tensors["weight_scale"][1:]}, (33, 96))


def test_without_an_exact_integer_product_fp32_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of pairs beyond 16 bits, some rows of W at a time."""
    monkeypatch.setattr(cpu, "int_mm_is_exact", lambda: False)
    monkeypatch.setattr(cpu, "PIECE", 4 * 96)
    codes, weight = torch.full((19, 96), 127, dtype=torch.int8), torch.full((33, 96), -128, dtype=torch.int8)
    weight[5] = 127
    assert torch.equal(cpu.integer_product(codes, weight).double(), codes.double() @ weight.double().T)


def test_a_cpu_whose_integer_product_saturates_is_recognised() -> None:
    code = (
        "from compress_kernels.ops.int8_matmul import cpu; import torch; "
        "w = torch.full((33, 96), 127, dtype=torch.int8); print(cpu.integer_product(w, w).unique().tolist())"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"[{96 * 127 * 127}.0]"
