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
