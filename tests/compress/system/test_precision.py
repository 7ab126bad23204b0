"""Quick products are near the exact ones, and the setting is put back whatever happens."""

from __future__ import annotations

import pytest
import torch
from compress_kernels import native

from compress.system.precision import gradient_dtype, planned_gradient_dtype, quick_products


def test_quick_products_are_near_and_end_with_the_context() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(64, 96, generator=generator) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    exact = left.double() @ right.double().T
    with pytest.raises(ZeroDivisionError), quick_products():
        assert torch.get_float32_matmul_precision() == "medium"
        near = left @ right.T
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == before
    assert float((near - exact).norm() / exact.norm()) < 5e-3


@pytest.mark.parametrize(
    ("dtype", "device", "quick", "expected"),
    [
        (torch.bfloat16, "cpu", True, torch.bfloat16),
        (torch.bfloat16, "cpu", False, torch.float32),
        (torch.float16, "cpu", True, torch.float32),
        (torch.float32, "cpu", True, torch.float32),
        (torch.bfloat16, "cuda", True, torch.float32),
    ],
)
def test_gradients_are_in_bf16_where_a_cpu_gains_by_it(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, device: str, quick: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(native, "multiplies_bf16", lambda: quick)
    assert gradient_dtype(dtype, torch.device(device)) == expected
    monkeypatch.setattr(native, "may_multiply_bf16", lambda: quick)
    assert planned_gradient_dtype(dtype, device) == expected


def test_a_plan_expects_what_the_kernels_will_do() -> None:
    if native.load().loaded:
        assert native.may_multiply_bf16() == native.multiplies_bf16()
