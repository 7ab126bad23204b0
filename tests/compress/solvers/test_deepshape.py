from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from compress.linalg.cholesky import damped
from compress.linalg.generalized_gaussian import code_bits
from compress.score.metric import Kron, Side
from compress.solvers import deepshape as module
from compress.solvers.base import Problem
from compress.solvers.coordinate_descent import CoordinateDescent
from compress.solvers.deepshape import DeepShape
from compress.structures.grids.integer import IntegerGrid


def problem_of(rows: int = 6, columns: int = 16, **changes: Any) -> Problem[Any]:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=draw)
    inputs = torch.randn(64, columns, generator=draw) @ torch.randn(columns, columns, generator=draw)
    metric = Kron(right=Side(inputs.T @ inputs / 64))
    return Problem(weight, IntegerGrid(3, "channel", True), metric, **changes)


def loss(problem: Problem[Any], theta: Tensor) -> float:
    delta = problem.weight - theta
    gram = damped(problem.metric.right.full(theta.shape[1], theta.device), 0.01)  # type: ignore[attr-defined]
    return float(((delta @ gram) * delta).sum())


def test_bits_fall_and_the_loss_rises_with_the_rate() -> None:
    problem = problem_of(32, 64)
    found = [DeepShape(rate=rate).solve(problem) for rate in (0.0, 0.3, 3.0)]
    bits = [float(one.info["bits"]) for one in found]
    losses = [loss(problem, one.theta) for one in found]
    assert bits == sorted(bits, reverse=True)
    assert losses == sorted(losses)
    assert bits[2] < 0.95 * bits[0]
    assert float(found[0].info["bits_before"]) == pytest.approx(float(found[2].info["bits_before"]))


def test_without_a_price_it_is_coordinate_descent() -> None:
    problem = problem_of()
    ours = DeepShape(rate=0.0, passes=8).solve(problem)
    other = CoordinateDescent(passes=8, refit=False).solve(problem)
    torch.testing.assert_close(ours.theta, other.theta)


def test_every_code_is_the_cheapest_of_its_column() -> None:
    problem = problem_of()
    grid = problem.structure
    solution = DeepShape(rate=1.0, passes=1).solve(problem)
    start = grid.project(problem.weight, solution.parameters)
    gram = damped(problem.metric.right.full(16, start.device), 0.01).double()  # type: ignore[attr-defined]
    price = loss(problem, start) / start.numel()
    prices = price * code_bits(grid.codes(start, solution.parameters), grid.top).double()
    values = [grid.values(torch.full_like(start, code), solution.parameters).double() for code in range(8)]
    theta, weight = start.double().clone(), problem.weight.double()
    for column in range(16):
        for row in range(6):
            costs = []
            for code in range(8):
                delta = weight[row] - theta[row]
                delta[column] = weight[row, column] - values[code][row, column]
                costs.append(float(delta @ gram @ delta) + float(prices[code]))
            theta[row, column] = values[costs.index(min(costs))][row, column]
    torch.testing.assert_close(solution.theta.double(), theta, rtol=0, atol=1e-6)


def test_strips_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of()
    whole = DeepShape().solve(problem).theta
    monkeypatch.setattr(module, "_BYTES", 4 * 16 * 8 * 2)
    assert torch.equal(DeepShape().solve(problem).theta, whole)
