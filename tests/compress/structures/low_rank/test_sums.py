"""Sums of factors and a residual: budgets, the residual of a point, and their bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from compress_kernels.layouts import check, layout_from_json, nbytes
from torch import Tensor

from compress.score.metric import Kron, Metric, Side
from compress.structures.base import StaysDense
from compress.structures.choices import Choice
from compress.structures.grids.integer import IntegerGrid
from compress.structures.low_rank.factors import Factors, Storage
from compress.structures.low_rank.sums import FactorsAnd, FactorsAndColumns, refit_columns
from compress.structures.sparse.masked import Masked
from compress.structures.sparse.patterns import Unstructured


def spd(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(size, 2 * size, generator=generator)
    return factor @ factor.T / size


def weight_of(shape: tuple[int, int]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def test_columns_are_least_squares() -> None:
    residual, right, index = weight_of((24, 40)), spd(40, 5), torch.tensor([3, 17, 39])
    metric = Kron(Side(spd(24, 6)), Side(right))
    values = refit_columns(residual, index, metric)
    left_over = residual.double()
    left_over[:, index] -= values
    assert float((left_over @ right.double())[:, index].abs().max()) <= 1e-8


def test_budgets_hold_with_columns() -> None:
    for shape in ((384, 384), (1024, 384), (384, 1024)):
        structure = FactorsAndColumns(Factors(0.8, inside=True), 0.05)
        assert nbytes(structure.layout(shape), shape) <= 0.8 * 2 * shape[0] * shape[1]


def test_what_would_not_be_smaller_stays_dense() -> None:
    structure = FactorsAnd(Factors(rank=32, inside=True), IntegerGrid(8, "channel"))
    with pytest.raises(StaysDense, match="would take"):
        structure.layout((64, 64))
    with pytest.raises(ValueError, match="share of the inputs"):
        FactorsAndColumns(Factors(0.5), 1.0)


def structures() -> dict[str, Any]:
    eight = Storage(grid=IntegerGrid(8, "channel"))
    return {
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


def test_a_fit_is_the_residual_alone_until_a_solver_finds_factors() -> None:
    weight, grid = weight_of((48, 64)), IntegerGrid(3, 16, False)
    structure = FactorsAnd(Factors(rank=8, storage=Storage(torch.float32), inside=True), grid)
    parameters = structure.fit(weight, Kron())
    plain = grid.project(weight, grid.fit(weight, Kron()))
    assert not bool(parameters.factors.dense.any())
    assert torch.equal(structure.project(weight, parameters), plain)
    fitted = structure.with_factors(weight, Kron(), parameters.residual, plain)
    assert torch.equal(structure.residual_of(weight, fitted), plain)
    u, s, v = torch.linalg.svd((weight - plain).double(), full_matrices=False)
    expected = plain + ((u[:, :8] * s[:8]) @ v[:8]).float()
    torch.testing.assert_close(structure.project(weight, fitted), expected, rtol=0, atol=1e-5)


def test_choices_of_a_sum() -> None:
    sparse = FactorsAnd(Factors(0.2, inside=True), Masked(Unstructured(0.6)))
    chosen = sparse.chosen(Choice(8, sparsity=0.7))
    assert isinstance(chosen, FactorsAnd)
    assert chosen.residual.pattern == Unstructured(0.7)
    assert chosen.factors == Factors(rank=8, inside=True)
    assert sparse.chosen(Choice(8, sparsity=1.0)) == Factors(rank=8)
    columns = FactorsAndColumns(Factors(0.5, inside=True), 0.05)
    assert columns.chosen(Choice(8, columns=0)) == Factors(rank=8)
    kept = columns.chosen(Choice(8, columns=5))
    assert isinstance(kept, FactorsAndColumns)
    assert kept.count((48, 64)) == 5
    assert columns.count((48, 64)) == 3
