"""Grids fitted group by group: exact cost, never uphill, better than one shrinkage for the row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from compress.solvers.gptq import CLIP_RATIOS, GPTQ
from compress.solvers.group_scales import GroupScales, _round
from compress.solvers.nearest import Nearest
from compress.structures.grids.integer import IntegerGrid


def test_never_uphill(hard: Any) -> None:
    for symmetric in (False, True):
        problem = hard.problem(IntegerGrid(3, "channel", symmetric))
        for start in (Nearest().solve(problem), GPTQ().solve(problem)):
            kept = start.theta.clone()
            found = GroupScales(damping=0.0, passes=2).solve(problem, start)
            assert bool(torch.isfinite(found.theta).all())
            before = problem.metric.loss(problem.weight - start.theta)
            assert problem.metric.loss(problem.weight - found.theta) <= before * (1 + 1e-5) + 1e-12
            assert torch.allclose(
                found.encode(problem.structure).dense(torch.float32), found.theta, atol=1e-6
            )
            assert torch.equal(start.theta, kept)


@pytest.mark.parametrize("bits", [2, 4])
def test_improves_gptq(make_case: Callable[..., Any], bits: int) -> None:
    problem = make_case(out=32, columns=64, tokens=1024).problem(IntegerGrid(bits, 16, False))
    ranges = GPTQ(clip_ratios=CLIP_RATIOS).solve(problem)
    found = GroupScales().solve(problem, ranges)
    assert problem.relative_error(found.theta) < 0.93 * problem.relative_error(ranges.theta)
    # Fitted scales leave less to gain.
    fitted = GPTQ().solve(problem)
    again = GroupScales().solve(problem, fitted)
    assert problem.relative_error(again.theta) < 0.97 * problem.relative_error(fitted.theta)


def test_cost_is_that_of_the_error(make_case: Callable[..., Any]) -> None:
    case = make_case(out=8, columns=32)
    gram = (case.inputs.T @ case.inputs / len(case.inputs)).double()
    root = torch.linalg.cholesky(torch.linalg.inv(gram), upper=True)
    values, costs = _round(
        case.weight.T.double(), root, torch.arange(32), lambda v, _: torch.round(v * 20) / 20
    )
    delta = case.weight.double() - values
    assert torch.allclose(((delta @ gram) * delta).sum(1), costs.double(), rtol=1e-4)


def slow_group(aim: torch.Tensor, gram: torch.Tensor, grid: Any, parameters: Any) -> torch.Tensor:
    """GPTQ on a single group in float64 with explicit inverses, columns by falling diagonal."""
    order = gram.diagonal().argsort(descending=True, stable=True)
    work, theta = aim.double()[:, order].clone(), torch.zeros_like(aim).double()
    hessian = gram.double()[order][:, order]
    rounder = grid.column_rounder(parameters, tuple(aim.shape))
    for j, column in enumerate(order.tolist()):
        inverse = torch.linalg.inv(hessian[j:, j:])
        theta[:, column] = rounder(work[:, j].float(), column).double()
        error = (work[:, j] - theta[:, column]) / inverse[0, 0]
        work[:, j + 1 :] -= torch.outer(error, inverse[0, 1:])
    return theta


@pytest.mark.parametrize("kind", ["even", "uneven"])
def test_each_row_of_a_group_takes_the_best_of_all_ranges(
    make_case: Callable[..., Any], uneven_grid: Any, kind: str
) -> None:
    """A weight of a single group, where the optimum is the weight itself."""
    case = make_case(out=10, columns=16)
    grid: Any = IntegerGrid(3, 16, True) if kind == "even" else uneven_grid
    problem = case.problem(grid)
    start = Nearest().solve(problem)
    solver = GroupScales(passes=1, damping=1e-6)
    found = solver.solve(problem, start)
    gram = problem.metric.right.matrix.double()
    losses = []
    for parameters in grid.clipped(start.parameters, solver.ratios):
        delta = case.weight.double() - slow_group(case.weight, gram, grid, parameters)
        losses.append(((delta @ gram) * delta).sum(1))
    delta = (case.weight - start.theta).double()
    best = torch.stack([*losses, ((delta @ gram) * delta).sum(1)]).amin(0)
    delta = (case.weight - found.theta).double()
    torch.testing.assert_close(((delta @ gram) * delta).sum(1), best, rtol=2e-3, atol=1e-9)


def test_follows_the_true_input_target(make_case: Callable[..., Any]) -> None:
    case = make_case(tokens=4096)
    wanted = case.dense @ case.weight.T
    errors = []
    for true_input in (False, True):
        problem = case.problem(IntegerGrid(4, 16, False), true_input=true_input)
        theta = GroupScales().solve(problem).theta
        errors.append(float((wanted - case.inputs @ theta.T).square().sum()))
    assert errors[1] < errors[0]
