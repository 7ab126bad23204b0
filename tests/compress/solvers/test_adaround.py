"""AdaRound: its slope against autograd, never worse than its start, and the true-input target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from compress.solvers.adaround import AdaRound
from compress.solvers.gptq import GPTQ
from compress.solvers.nearest import Nearest
from compress.structures.grids.integer import IntegerGrid


def test_never_worse_than_the_start(hard: Any) -> None:
    problem = hard.problem(IntegerGrid(3, "channel", False))
    for start in (Nearest().solve(problem), GPTQ().solve(problem)):
        found = AdaRound(iterations=30, damping=0.0).solve(problem, start)
        assert bool(torch.isfinite(found.theta).all())
        before = problem.metric.row_losses(problem.weight - start.theta)
        after = problem.metric.row_losses(problem.weight - found.theta)
        assert bool((after <= before * (1 + 1e-5) + 1e-12).all())
        assert torch.allclose(found.encode(problem.structure).dense(torch.float32), found.theta, atol=1e-6)


def test_regularizer_is_the_derivative() -> None:
    for done in (0.0, 0.5, 1.0):
        soft = torch.linspace(0.05, 0.95, 14, dtype=torch.float64).requires_grad_()
        beta = 20 + (2 - 20) * done
        (1 - (2 * soft - 1).abs() ** beta).sum().backward()
        assert torch.allclose(AdaRound()._regularize(soft.detach(), done), soft.grad, atol=1e-12)


def slow_adaround(problem: Any, start: Any, iterations: int) -> torch.Tensor:
    """The codes after some steps of Adam, in float64, with every gradient from autograd."""
    grid: Any = problem.structure
    solver, weight = AdaRound(iterations=iterations), problem.weight.double()
    gram = problem.metric.right.matrix.double()
    damped = gram + solver.damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    losses = ((weight - start.theta) @ damped * (weight - start.theta)).sum(1, keepdim=True)
    codes = grid.codes(start.theta, start.parameters).double()
    position = grid.position(problem.weight, start.parameters).double()
    position = position.clamp(codes - 0.48, codes + 0.48)
    base = position.floor().clamp(0, grid.top - 1)
    lower, upper = (grid.values((base + i).float(), start.parameters).double() for i in (0, 1))
    cost = (upper - lower).square() / torch.linalg.inv(damped).diagonal()
    variable = torch.logit(((position - base).clamp(0.01, 0.99) + 0.1) / 1.2).requires_grad_()
    optimizer = torch.optim.Adam([variable], lr=solver.rate)
    for step in range(iterations):
        soft = (variable.sigmoid() * 1.2 - 0.1).clamp(0, 1)
        delta = weight - lower - soft * (upper - lower)
        loss = ((delta @ damped) * delta).sum(1, keepdim=True)
        done = (step / iterations - solver.warmup) / (1 - solver.warmup)
        if done >= 0:
            beta = solver.beta[0] + (solver.beta[1] - solver.beta[0]) * done
            regularizer = cost * (1 - (2 * soft - 1).abs() ** beta)
            loss = loss + solver.regularizer * regularizer.sum(1, keepdim=True)
        optimizer.zero_grad()
        (loss / losses).sum().mul(weight.shape[1]).backward()
        optimizer.step()
    return base + (variable >= 0)


@pytest.mark.parametrize("kind", ["even", "uneven"])
def test_follows_the_gradient_of_its_loss(make_case: Callable[..., Any], uneven_grid: Any, kind: str) -> None:
    case = make_case(out=12, columns=32)
    problem = case.problem(IntegerGrid(3, 16, False) if kind == "even" else uneven_grid)
    start = Nearest().solve(problem)
    expected = slow_adaround(problem, start, 100)
    found = AdaRound(iterations=100).solve(problem, start)
    codes = problem.structure.codes(found.theta, start.parameters)
    moved = (found.theta != start.theta).any(1)
    assert int(moved.sum()) >= 6
    # Rows that did not gain keep their start; of the others an element can fall either way in the last bit.
    assert float((codes[moved] == expected[moved]).float().mean()) > 0.99


def test_beats_rounding_and_improves_gptq(make_case: Callable[..., Any]) -> None:
    problem = make_case(out=32, tokens=1024).problem(IntegerGrid(3, 16, False))
    nearest, gptq = Nearest().solve(problem), GPTQ().solve(problem)
    alone = AdaRound().solve(problem)
    after = AdaRound().solve(problem, gptq)
    assert problem.relative_error(alone.theta) < 0.9 * problem.relative_error(nearest.theta)
    assert problem.relative_error(after.theta) < problem.relative_error(gptq.theta)


@pytest.mark.parametrize("kind", ["even", "uneven"])
def test_finds_the_best_of_all_roundings(make_case: Callable[..., Any], uneven_grid: Any, kind: str) -> None:
    """One row of few columns: every choice of the lower or the upper neighbour can be tried."""
    case = make_case(out=1, columns=8)
    even = IntegerGrid(3, "channel", False, scale_dtype=torch.float32)
    grid = even if kind == "even" else replace(uneven_grid, width=8)
    problem = case.problem(grid)
    parameters = grid.fit(case.weight, problem.metric)
    floor = grid.position(case.weight, parameters).floor().clamp(0, grid.top - 1)
    gram = problem.metric.right.matrix
    best = min(
        float((case.weight - theta) @ gram @ (case.weight - theta).T)
        for bits in range(256)
        for theta in [grid.values(floor + torch.tensor([bits >> i & 1 for i in range(8)]), parameters)]
    )
    found = AdaRound(iterations=1000, damping=0.0).solve(problem)
    assert problem.metric.loss(case.weight - found.theta) <= best * 1.02


def test_follows_the_true_input_target(make_case: Callable[..., Any]) -> None:
    case = make_case(tokens=4096)
    wanted = case.dense @ case.weight.T
    errors = []
    for true_input in (False, True):
        problem = case.problem(IntegerGrid(4, 16, False), true_input=true_input)
        theta = AdaRound().solve(problem).theta
        errors.append(float((wanted - case.inputs @ theta.T).square().sum()))
    assert errors[1] < errors[0]
