"""Quick products are near the exact ones, and the setting is put back whatever happens."""

from __future__ import annotations

import pytest
import torch

from compress.system.precision import quick_products


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
