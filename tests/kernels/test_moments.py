"""Gram and cross moments of bf16 inputs by the C++ kernel, against float64."""

from __future__ import annotations

import pytest
import torch
from compress_kernels import native

pytestmark = pytest.mark.skipif(not native.load().vectorised, reason="no AVX-512")
OPS = torch.ops.compress_kernels


@pytest.mark.parametrize("columns", [1, 12, 33, 96, 700])
@pytest.mark.parametrize("tokens", [1, 2, 77, 1025])
def test_below_the_diagonal_it_is_the_sum_of_products(tokens: int, columns: int) -> None:
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(0)).bfloat16()
    gram = torch.zeros(columns, columns)
    native.load()
    OPS.native_add_products(gram, x, None)
    OPS.native_add_products(gram, x, x)  # it adds
    wanted = 2 * x.double().T @ x.double()
    torch.testing.assert_close(gram.tril().double(), wanted.tril(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("columns", [1, 45, 300])
@pytest.mark.parametrize("tokens", [1, 77, 600])
def test_of_two_inputs_it_is_the_whole_sum(tokens: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(tokens, columns, generator=generator).bfloat16() for _ in range(2))
    found = torch.ones(columns, columns)
    OPS.native_add_products(found, a, b)
    torch.testing.assert_close(found.double(), 1 + a.double().T @ b.double(), rtol=1e-5, atol=1e-4)


def test_threads_change_no_bit() -> None:
    x = torch.randn(500, 200, generator=torch.Generator().manual_seed(0)).bfloat16()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(torch.zeros(200, 200))
            OPS.native_add_products(found[-1], x, None)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0].tril(), found[1].tril())
    assert torch.equal(found[0].tril(), found[2].tril())


def test_other_dtypes_and_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="bfloat16"):
        OPS.native_add_products(torch.zeros(4, 4), torch.zeros(3, 4), None)
    with pytest.raises(ValueError, match="contiguous"):
        OPS.native_add_products(torch.zeros(5, 5), torch.zeros(3, 4).bfloat16(), None)
    with pytest.raises(ValueError, match="bfloat16"):
        OPS.native_add_products(torch.zeros(4, 4), torch.zeros(3, 4).bfloat16(), torch.zeros(2, 4).bfloat16())
