"""Products of bf16 by way of fp32: the same numbers, rounded once, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from compress_kernels import native
from compress_kernels import wide_products as module
from compress_kernels.wide_products import bf16_is_slow, wide_products
from torch import Tensor

BF16 = torch.bfloat16


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """On a CPU without instructions for bf16: whether each product was taken."""
    fits, found = module._fits, []

    def counted(factors: list[Tensor]) -> bool:
        found.append(fits(factors))
        return found[-1]

    monkeypatch.setattr(module, "_fits", counted)
    monkeypatch.setattr(module, "bf16_is_slow", lambda: True)
    return found


def drawn(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


PRODUCTS: dict[str, Callable[[torch.dtype], Tensor]] = {
    "linear": lambda d: torch.nn.functional.linear(drawn(2, 40, 48).to(d), drawn(33, 48).to(d)),
    "linear with a bias": lambda d: torch.nn.functional.linear(
        drawn(2, 40, 48).to(d), drawn(33, 48).to(d), drawn(33).to(d)
    ),
    "matmul": lambda d: drawn(40, 48).to(d) @ drawn(48, 9).to(d),
    "bmm": lambda d: torch.bmm(drawn(3, 40, 48).to(d), drawn(3, 48, 9).to(d)),
    "addmm": lambda d: torch.addmm(
        drawn(40, 9).to(d), drawn(40, 48).to(d), drawn(48, 9).to(d), beta=0.5, alpha=2.0
    ),
    "baddbmm": lambda d: torch.baddbmm(drawn(3, 40, 9).to(d), drawn(3, 40, 48).to(d), drawn(3, 48, 9).to(d)),
    "einsum": lambda d: torch.einsum("bik,bkj->bij", drawn(3, 40, 48).to(d), drawn(3, 48, 9).to(d)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_result_is_rounded_once(name: str, taken: list[bool]) -> None:
    with wide_products():
        found = PRODUCTS[name](BF16)
    assert taken == [True]
    assert found.dtype == BF16
    wanted = PRODUCTS[name](torch.float64)
    torch.testing.assert_close(found.double(), wanted, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("name", ["linear with a bias", "matmul", "addmm"])
def test_large_products_are_made_in_pieces(
    name: str, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    with wide_products():
        whole = PRODUCTS[name](BF16)
    monkeypatch.setattr(module, "_PIECE", 48 * 5)  # five columns, and few rows
    monkeypatch.setattr(module, "_ROWS", 3)
    with wide_products():
        pieces = PRODUCTS[name](BF16)
    torch.testing.assert_close(pieces, whole, rtol=2**-7, atol=1e-4)
    assert taken == [True, True]


def test_equal_products_are_equal_to_the_last_bit(taken: list[bool]) -> None:
    left, right = drawn(40, 300), drawn(70, 300)
    laid_out_otherwise = right.t().contiguous()
    with wide_products():
        assert torch.equal(left @ right.t(), left @ laid_out_otherwise)
        assert torch.equal(left @ right.t(), left.t().contiguous().t() @ right.t())
    assert taken == [True] * 4


def test_gradients_pass_through(taken: list[bool]) -> None:
    weight = torch.nn.Parameter(drawn(33, 48))
    with wide_products():
        torch.nn.functional.linear(drawn(40, 48), weight).float().square().sum().backward()
    wide = weight.detach().double().requires_grad_()
    torch.nn.functional.linear(drawn(40, 48).double(), wide).square().sum().backward()
    assert weight.grad is not None
    assert wide.grad is not None
    assert weight.grad.dtype == BF16
    assert taken[0]
    assert float((weight.grad.double() - wide.grad).norm() / wide.grad.norm()) < 0.01


OTHERS: dict[str, Callable[[], Tensor]] = {
    "fp32": lambda: drawn(40, 48, dtype=torch.float32) @ drawn(48, 9, dtype=torch.float32),
    "few rows": lambda: drawn(3, 48) @ drawn(48, 9),
    "without numbers": lambda: drawn(40, 48).to("meta") @ drawn(48, 9).to("meta"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_products_are_torchs(name: str, taken: list[bool]) -> None:
    wanted = OTHERS[name]()
    with wide_products():
        found = OTHERS[name]()
    assert taken == [False]
    assert found.device == wanted.device
    assert found.is_meta or torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("machine", "flags", "slow"),
    [
        ("x86_64", {"avx2", "avx512f"}, True),
        ("x86_64", {"avx2", "avx512_bf16"}, False),
        ("x86_64", {"amx_bf16"}, False),
        ("x86_64", set(), False),
        ("aarch64", {"asimd"}, False),
    ],
)
def test_which_cpus_are_slow(
    machine: str, flags: set[str], slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.platform, "machine", lambda: machine)
    monkeypatch.setattr(native, "cpu_flags", lambda: frozenset(flags))
    assert bf16_is_slow() == slow


def test_nothing_happens_on_a_cpu_that_has_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "bf16_is_slow", lambda: False)
    monkeypatch.setattr(module, "_WideProducts", None)
    with wide_products():
        assert (drawn(40, 48) @ drawn(48, 9)).dtype == BF16
