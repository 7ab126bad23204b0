"""Which backend runs: asked for by name it must load or raise, left open it falls back and says why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from compress_kernels.layouts import Dense, LowRank, PackedInteger, PlainInteger
from compress_kernels.ops import packed_matmul
from compress_kernels.ops.dispatch import (
    AUTO,
    Backend,
    BackendError,
    Prepared,
    describe,
    distinct_storages,
    resolve,
)
from compress_kernels.ops.epilogue import finish
from compress_kernels.ops.table import prepare
from compress_kernels.ops.tuning import candidates, file_name, settings, table, using
from torch import Tensor

CPU = torch.device("cpu")


def backend(name: str, reason: str | None = None, note: str = "") -> Backend:
    return Backend(
        name, lambda device: reason, lambda *given: given, lambda *given: given[0], note=lambda: note
    )


def test_the_first_that_can_run_is_taken() -> None:
    backends = {
        "fast": backend("fast", "no chip"),
        "slow": backend("slow", note="plain"),
        "last": backend("last"),
    }
    chosen, note = resolve("op", backends, CPU)
    assert chosen.name == "slow"
    assert note == "slow (plain); not fast: no chip"


def test_a_backend_by_name() -> None:
    backends = {"fast": backend("fast", "no chip"), "slow": backend("slow")}
    assert resolve("op", backends, CPU, "slow")[0].name == "slow"
    with pytest.raises(BackendError, match="op: backend 'fast' cannot run on cpu: no chip"):
        resolve("op", backends, CPU, "fast")
    with pytest.raises(BackendError, match="has no backend 'faster': choose auto, fast, slow"):
        resolve("op", backends, CPU, "faster")


def test_no_backend_at_all() -> None:
    with pytest.raises(BackendError, match="op cannot run on cpu: not fast: no chip"):
        resolve("op", {"fast": backend("fast", "no chip")}, CPU, AUTO)


def test_descriptions() -> None:
    assert describe(backend("a")) == "a"
    assert describe(backend("a", note="b")) == "a (b)"


def test_inputs_that_do_not_fit_are_refused_before_the_product() -> None:
    prepared = Prepared((), backend("a"), "a", (3, 4))
    with pytest.raises(ValueError, match="x has 5 features where the weight takes 4"):
        prepared(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="not torch.int64"):
        prepared(torch.zeros(2, 4, dtype=torch.int64))


@dataclass
class Nested:
    first: Tensor
    inner: Any


def test_storages_count_once_however_deep_they_lie() -> None:
    base = torch.zeros(8)
    other = torch.zeros(2, dtype=torch.float64)
    operands = Nested(base, (base[2:], [Prepared(Nested(other, None), backend("a"), "", (1, 1))]))
    assert {tensor.untyped_storage().data_ptr() for tensor in distinct_storages(operands)} == {
        base.untyped_storage().data_ptr(), other.untyped_storage().data_ptr(),
    }  # fmt: skip
    assert Prepared(operands, backend("a"), "", (1, 1)).nbytes == 32 + 16


@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16])
def test_the_epilogue_rounds_once(out: torch.dtype) -> None:
    torch.manual_seed(0)
    product, bias, residual = torch.randn(3, 5), torch.randn(5), torch.randn(3, 5)
    assert torch.equal(finish(product, bias, residual, out), (product + bias + residual).to(out))
    assert torch.equal(finish(product, None, residual, out), (product + residual).to(out))
    assert torch.equal(finish(product, bias, None, out), (product + bias).to(out))
    assert torch.equal(finish(product, None, None, out), product.to(out))


def test_half_products_are_added_to_in_fp32() -> None:
    product = torch.full((1, 1), 256.0, dtype=torch.bfloat16)
    bias, residual = torch.tensor([0.6]), torch.tensor([[0.6]])
    # In bf16 each of the two would be lost by itself.
    assert float(finish(product, bias, residual, torch.bfloat16)) == 258.0


@pytest.mark.parametrize(
    ("device", "file"),
    [("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3.json"), ("  A (b) ", "a-b.json"), ("L4", "l4.json")],
)
def test_names_of_tuning_files(device: str, file: str) -> None:
    assert file_name(device) == file


def test_every_table_has_the_same_operators_and_regimes() -> None:
    regimes = {operator: set(entry) for operator, entry in table("default").items()}
    for device in ("interpreter", "a chip that nobody measured"):
        assert {operator: set(entry) for operator, entry in table(device).items()} == regimes
    assert settings("words", "decode", CPU) == table("interpreter")["words"]["decode"]


def test_candidates_begin_with_the_default_and_are_tried_for_a_while() -> None:
    for operator, regimes in table("default").items():
        for regime, default in regimes.items():
            every = candidates(operator, regime)
            assert every[0] == default
            assert all(set(choice) == set(default) for choice in every)
            assert len({str(sorted(choice.items())) for choice in every}) == len(every)
    assert candidates("no such operator", "decode") == []
    before, tried = settings("words", "rows", CPU), {"BN": 1}
    with pytest.raises(ZeroDivisionError), using("words", "rows", tried, CPU):
        assert settings("words", "rows", CPU) == tried
        raise ZeroDivisionError
    assert settings("words", "rows", CPU) == before


def test_the_table_finds_the_operator_of_a_layout() -> None:
    grid = PackedInteger(4, 32)
    tensors = grid.encode(torch.randint(0, 16, (8, 64)), torch.rand(8, 2))
    assert prepare(grid, tensors, (8, 64)).backend.name in packed_matmul.BACKENDS
    low_rank = LowRank(2)
    of_factors = low_rank.encode(Dense().encode(torch.randn(8, 2)), Dense().encode(torch.randn(2, 64)))
    assert "low_rank" in prepare(low_rank, of_factors, (8, 64)).note


def test_a_layout_without_an_operator_is_refused() -> None:
    class Strange(PlainInteger):
        name = "strange"  # type: ignore[misc]

    with pytest.raises(
        ValueError, match="no operator multiplies with a strange weight: there is dense, pack-quant"
    ):
        prepare(Strange(), {}, (1, 1))
