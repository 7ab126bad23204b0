"""Truncation against dense linear algebra in float64; ranks, bytes and encoding of factors and sums."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from compress_kernels.layouts import check, layout_from_json, nbytes
from torch import Tensor

from compress.linalg.weighted_svd import common_inputs, refit_left, refit_right, take_apart
from compress.score.metric import Elementwise, Kron, Metric, Side
from compress.structures.base import StaysDense
from compress.structures.grids.integer import IntegerGrid
from compress.structures.low_rank.factors import Factors, Storage
from compress.structures.low_rank.sums import FactorsAnd, FactorsAndColumns, refit_columns
from compress.structures.sparse.masked import Masked
from compress.structures.sparse.patterns import Unstructured

SHAPES = [(48, 80), (80, 48), (64, 64)]


def spd(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(size, 2 * size, generator=generator)
    return factor @ factor.T / size


def weight_of(shape: tuple[int, int]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def metrics(shape: tuple[int, int]) -> dict[str, Kron]:
    left, right = spd(shape[0], 1), spd(shape[1], 2)
    return {
        "svd": Kron(),
        "fwsvd": Kron(left=Side(left.diagonal())),
        "asvd": Kron(right=Side(right.diagonal())),
        "svd-llm": Kron(right=Side(right)),
        "gfwsvd": Kron(Side(left), Side(right)),
    }


def reference(weight: Tensor, metric: Kron, rank: int) -> tuple[Tensor, Tensor]:
    """The best weight of a rank by Cholesky factors and a full SVD, and the singular values, in float64."""
    out, columns = weight.shape
    left = torch.linalg.cholesky(metric.left.full(out, "cpu").double())
    right = torch.linalg.cholesky(metric.right.full(columns, "cpu").double())
    u, s, v = torch.linalg.svd(left.T @ weight.double() @ right, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ v[:rank]
    return torch.linalg.solve(left.T, best) @ torch.linalg.inv(right), s


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["svd", "fwsvd", "asvd", "svd-llm", "gfwsvd"])
def test_truncation_is_the_best_weight_of_its_rank(shape: tuple[int, int], name: str) -> None:
    weight, metric = weight_of(shape), metrics(shape)[name]
    parts = take_apart(weight, metric)
    best, values = reference(weight, metric, 16)
    torch.testing.assert_close(parts.left[:, :16] @ parts.right[:16], best, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(parts.values, values, rtol=1e-6, atol=1e-7)
    loss = metric.loss((weight - best).float()) / metric.loss(weight)
    assert parts.lost(16) == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_sides_do_no_harm(shape: tuple[int, int]) -> None:
    weight = weight_of(shape)
    for left, right in ((4, 6), (4, 200), (200, 4)):
        low = torch.randn(shape[0], left, generator=torch.Generator().manual_seed(3))
        few = torch.randn(shape[1], right, generator=torch.Generator().manual_seed(4))
        metric = Kron(Side(low @ low.T), Side(few @ few.T))
        parts = take_apart(weight, metric)
        theta = (parts.left[:, :8] @ parts.right[:8]).float()
        assert torch.isfinite(theta).all()
        if min(left, right) <= 8:  # so few directions cost anything that eight ranks hold them all
            assert metric.loss(weight - theta) <= 1e-4 * metric.loss(weight)


def test_nothing_seen_is_plain_svd() -> None:
    weight = weight_of((32, 48))
    nothing = Kron(Side(torch.zeros(32, 32)), Side(torch.zeros(48)))
    torch.testing.assert_close(take_apart(weight, nothing).values, torch.linalg.svdvals(weight.double()))


def test_elementwise_metrics_are_taken_by_rows_and_columns() -> None:
    weight, rows, columns = weight_of((32, 48)), torch.rand(32) + 0.1, torch.rand(48) + 0.1
    together = take_apart(weight, Elementwise(rows.unsqueeze(1) * columns))
    apart = take_apart(weight, Kron(Side(rows), Side(columns)))
    torch.testing.assert_close(together.values, apart.values * (together.values[0] / apart.values[0]))


@pytest.mark.parametrize("name", ["svd", "gfwsvd"])
def test_refits_are_least_squares(name: str) -> None:
    shape = (40, 56)
    weight, metric = weight_of(shape), metrics(shape)[name]
    left, right = torch.randn(40, 8), torch.randn(8, 56)
    for found, theta in (
        (refit_right(weight, left, metric), lambda a: left.double() @ a),
        (refit_left(weight, right, metric), lambda b: b @ right.double()),
    ):
        free = found.clone().requires_grad_(True)
        delta = weight.double() - theta(free)
        cost = (
            metric.left.full(40, "cpu").double() @ delta @ metric.right.full(56, "cpu").double() * delta
        ).sum()
        (slope,) = torch.autograd.grad(cost, free)
        assert float(slope.norm()) <= 1e-6 * float(cost)


def test_columns_are_least_squares() -> None:
    residual, right, index = weight_of((24, 40)), spd(40, 5), torch.tensor([3, 17, 39])
    metric = Kron(Side(spd(24, 6)), Side(right))
    values = refit_columns(residual, index, metric)
    left_over = residual.double()
    left_over[:, index] -= values
    assert float((left_over @ right.double())[:, index].abs().max()) <= 1e-8


@pytest.mark.parametrize(
    ("shape", "ratio", "rank"),
    [
        ((384, 384), 0.8, 152),
        ((128, 384), 0.8, 72),
        ((1024, 384), 0.6, 160),
        ((4096, 4096), 0.5, 1024),
        ((16, 16), 0.5, 4),
    ],
)
def test_ranks_round_down_under_the_budget(shape: tuple[int, int], ratio: float, rank: int) -> None:
    factors = Factors(ratio)
    assert factors.rank_of(shape) == rank
    assert rank * sum(shape) <= ratio * shape[0] * shape[1]
    assert nbytes(factors.layout(shape), shape) == 2 * rank * sum(shape)


def test_budgets_hold_with_columns() -> None:
    for shape in ((384, 384), (1024, 384), (384, 1024)):
        structure = FactorsAndColumns(Factors(0.8, inside=True), 0.05)
        assert nbytes(structure.layout(shape), shape) <= 0.8 * 2 * shape[0] * shape[1]


def test_what_would_not_be_smaller_stays_dense() -> None:
    with pytest.raises(StaysDense, match="would take"):
        Factors(rank=48).layout((64, 64))
    with pytest.raises(StaysDense, match="leaves no rank"):
        Factors(0.01).layout((8, 8))
    grid = IntegerGrid(8, "channel")
    with pytest.raises(StaysDense, match="would take"):
        FactorsAnd(Factors(rank=32, inside=True), grid).layout((64, 64))


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="exceeds its smaller side"):
        Factors(rank=65).layout((64, 128))
    for ratio in (0.0, -1.0, 1.5):
        with pytest.raises(ValueError, match="above 0 and up to 1"):
            Factors(ratio)
    with pytest.raises(ValueError, match="either a ratio or a rank"):
        Factors()
    with pytest.raises(ValueError, match="share of the inputs"):
        FactorsAndColumns(Factors(0.5), 1.0)


def structures() -> dict[str, Any]:
    eight = Storage(grid=IntegerGrid(8, "channel"))
    return {
        "factors": Factors(0.5),
        "fp32": Factors(0.5, storage=Storage(torch.float32)),
        "on a grid": Factors(0.5, storage=eight),
        "grouped": Factors(0.5, storage=Storage(grid=IntegerGrid(4, 16))),
        "columns": FactorsAndColumns(Factors(0.5, inside=True), 0.05),
        "and a grid": FactorsAnd(Factors(rank=8, inside=True), IntegerGrid(3, 16, symmetric=False)),
        "both on grids": FactorsAnd(Factors(rank=8, storage=eight, inside=True), IntegerGrid(3, 16)),
        "and sparse": FactorsAnd(Factors(0.2, inside=True), Masked(Unstructured(0.6))),
    }


@pytest.mark.parametrize("name", list(structures()))
def test_encoding_is_exact(name: str) -> None:
    structure, shape = structures()[name], (48, 64)
    weight = weight_of(shape)
    metric: Metric = Kron(right=Side(spd(64, 2)))
    before = weight.clone()
    parameters = structure.fit(weight, metric)
    theta = structure.project(weight, parameters)
    packed = structure.encode(theta, parameters)
    assert torch.equal(weight, before)
    assert packed.layout == structure.layout(shape)
    check(packed.layout, packed.tensors, shape)
    assert layout_from_json(json.loads(json.dumps(packed.layout.to_json()))) == packed.layout
    assert sum(tensor.nbytes for tensor in packed.tensors.values()) == nbytes(packed.layout, shape)
    torch.testing.assert_close(packed.dense(torch.float32), theta, rtol=0, atol=1e-6)


def test_the_factor_of_several_weights_is_that_of_the_weights_stacked() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(size, 12, generator=generator) for size in (6, 10)]
    lefts = [torch.randn(size, size, generator=generator) for size in (6, 10)]
    root = torch.randn(12, 12, generator=generator)
    right = Side(root @ root.T)
    metrics = [Kron(Side(left @ left.T), right) for left in lefts]
    factor, values = common_inputs(weights, metrics)
    whole = Kron(Side(torch.block_diag(*[left @ left.T for left in lefts])), right)
    parts = take_apart(torch.cat(weights), whole)
    torch.testing.assert_close(values, parts.values, rtol=1e-6, atol=1e-6)
    for rank in (3, 7):
        lost = sum(
            metric.loss(weight - (refit_left(weight, factor[:rank], metric) @ factor[:rank]).float())
            for weight, metric in zip(weights, metrics, strict=True)
        )
        assert abs(lost - float(parts.values[rank:].square().sum())) <= 1e-4 * whole.loss(torch.cat(weights))
