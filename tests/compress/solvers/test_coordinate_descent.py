"""Coordinate descent against a slow float64 loop, and that it never goes uphill."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.solvers.base import Solution
from compress.solvers.coordinate_descent import CoordinateDescent, best_factors, descend, refit_scales
from compress.solvers.gptq import GPTQ
from compress.solvers.nearest import Nearest
from compress.structures.grids.integer import IntegerGrid

GRID = IntegerGrid(3, 16, False, scale_dtype=torch.float32)


def start_of(problem: Any) -> Solution:
    return Nearest().solve(problem)


def slow_round(weight: Tensor, theta: Tensor, gram: Tensor, values: list[Tensor]) -> Tensor:
    """One round of exact search over the codes of one element at a time, in float64; ``values`` [levels, out] by column."""
    theta = theta.clone()
    for j in range(weight.shape[1]):
        for i in range(weight.shape[0]):
            losses = []
            for value in values[j][:, i]:
                delta = weight[i] - theta[i]
                delta = delta.clone()
                delta[j] = weight[i, j] - value
                losses.append(float(delta @ gram @ delta))
            theta[i, j] = values[j][int(torch.tensor(losses).argmin()), i]
    return theta


@pytest.mark.parametrize("kind", ["even", "uneven"])
def test_one_round_is_exact_search_by_element(
    make_case: Callable[..., Any], uneven_grid: Any, kind: str
) -> None:
    case = make_case(out=4, columns=32)
    grid = GRID if kind == "even" else uneven_grid
    problem = case.problem(grid)
    start = start_of(problem)
    every = [torch.full((4, 32), float(code)) for code in range(grid.top + 1)]
    levels = torch.stack([grid.values(codes, start.parameters) for codes in every]).double()
    gram = problem.metric.right.matrix
    expected = slow_round(case.weight.double(), start.theta.double(), gram.double(), list(levels.unbind(-1)))
    rounder = grid.column_rounder(start.parameters, problem.shape)
    for block in (5, 128):
        found, moved = descend(case.weight, start.theta, gram, rounder, block)
        assert torch.allclose(found.double(), expected, atol=1e-6)
        assert moved == int((expected != start.theta.double()).sum())


def test_factors_are_least_squares(make_case: Callable[..., Any]) -> None:
    case = make_case(out=3, columns=48)
    problem = case.problem(GRID)
    theta = start_of(problem).theta.double()
    gram = problem.metric.right.matrix.double()
    root = torch.linalg.cholesky(gram + 1e-9 * torch.eye(48)).T
    factors = best_factors(case.weight, theta.float(), gram.float(), 3)
    for row in range(3):
        parts = torch.stack([(theta[row] * (torch.arange(48) // 16 == g)) for g in range(3)], 1)
        expected = torch.linalg.lstsq(root @ parts, (root @ case.weight[row].double()).unsqueeze(1)).solution
        assert torch.allclose(factors[row].double(), expected.squeeze(1), atol=2e-3)


def test_never_uphill(hard: Any) -> None:
    for refit in (False, True):
        problem = hard.problem(IntegerGrid(2, "channel", False))
        start = start_of(problem)
        losses = [problem.metric.loss(problem.weight - start.theta)]
        for passes in (1, 2, 4):
            found = CoordinateDescent(passes=passes, damping=0.0, refit=refit).solve(problem, start)
            assert bool(torch.isfinite(found.theta).all())
            losses.append(problem.metric.loss(problem.weight - found.theta))
            dense = found.encode(problem.structure).dense(torch.float32)
            assert torch.allclose(dense, found.theta, atol=1e-6)
        for before, after in zip(losses, losses[1:], strict=False):
            assert after <= before * (1 + 1e-5) + 1e-12


def test_polishes_gptq(make_case: Callable[..., Any]) -> None:
    problem = make_case("outliers20").problem(IntegerGrid(3, 16, True))
    start = GPTQ().solve(problem)
    kept = start.theta.clone()
    found = CoordinateDescent(damping=0.0).solve(problem, start)
    assert problem.relative_error(found.theta) < problem.relative_error(start.theta)
    assert torch.equal(start.theta, kept)


def test_follows_the_true_input_target(make_case: Callable[..., Any]) -> None:
    case = make_case(tokens=4096)
    wanted = case.dense @ case.weight.T
    errors = []
    for true_input in (False, True):
        problem = case.problem(IntegerGrid(4, 16, False), true_input=true_input)
        theta = CoordinateDescent().solve(problem).theta
        errors.append(float((wanted - case.inputs @ theta.T).square().sum()))
    assert errors[1] < errors[0]


def test_scales_are_refitted_for_the_rows_where_the_loss_falls(make_case: Callable[..., Any]) -> None:
    problem = make_case().problem(GRID)
    gram = problem.metric.right.matrix
    start = start_of(problem)
    # Scales that are too large: the fit brings them back, row by row.
    theta, parameters = GRID.rescale(start.theta, start.parameters, 1.2 * start.parameters.scale)
    refitted, changed = refit_scales(problem.weight, theta, parameters, GRID, gram)
    before, after = (((problem.weight - t) @ gram * (problem.weight - t)).sum(1) for t in (theta, refitted))
    assert bool((after < 0.9 * before).all())
    torch.testing.assert_close(GRID.project(refitted, changed), refitted, rtol=0, atol=1e-6)
