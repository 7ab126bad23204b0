"""GSQ on a small block of two linears with a nonlinearity between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.solvers.base import BlockProblem, Solution
from compress.solvers.block_training import Lion, Schedule
from compress.solvers.gptq import GPTQ
from compress.solvers.gsq import GSQ, _Trained
from compress.solvers.nearest import Nearest
from compress.structures.grids.affine import AffineGrid
from compress.structures.grids.integer import IntegerGrid
from compress.structures.grids.nf4 import NF4Grid

GRID = IntegerGrid(2, 16, False)


def block_of(
    make_case: Callable[..., Any], kind: str = "plain", grid: Any = GRID, metric: Tensor | None = None
) -> tuple[BlockProblem[Any], Callable[..., float]]:
    first = make_case(kind, out=32, columns=32, tokens=512)
    second = make_case("plain", out=16, columns=32, tokens=512)
    inputs = first.inputs.view(8, 64, 32)

    def forward(thetas: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        return torch.nn.functional.silu(5 * hidden @ thetas["up"].T) @ thetas["down"].T

    dense = {"up": first.weight, "down": second.weight}
    targets = forward(dense, inputs)

    def run(batch: int, thetas: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return forward(thetas, inputs[batch : batch + 1]), targets[batch : batch + 1]

    problems = {"up": first.problem(grid), "down": second.problem(grid)}
    block = BlockProblem(problems, 8, run, metric)

    def error(solutions: Mapping[str, Solution]) -> float:
        thetas = {name: solution.theta for name, solution in solutions.items()}
        lost, whole = (
            block.costs(0, forward(thetas, inputs), targets),
            block.costs(0, targets, torch.zeros_like(targets)),
        )
        return float(lost.sum() / whole.sum())

    return block, error


def starts_of(block: BlockProblem[Any], solver: Any) -> dict[str, Solution]:
    return {name: solver.solve(problem) for name, problem in block.problems.items()}


def test_lowers_the_error_of_the_output(make_case: Callable[..., Any]) -> None:
    block, error = block_of(make_case)
    for solver, share in ((Nearest(), 0.7), (GPTQ(clip_ratios=(1.0,)), 0.93)):
        starts = starts_of(block, solver)
        kept = {name: start.theta.clone() for name, start in starts.items()}
        found = GSQ(steps=200).solve(block, starts)
        assert error(found) < share * error(starts)
        assert all(torch.equal(starts[name].theta, theta) for name, theta in kept.items())
        for name, solution in found.items():
            dense = solution.encode(GRID).dense(torch.float32)
            assert torch.allclose(dense, solution.theta, atol=1e-6), name
            assert solution.info["block_error"] <= solution.info["block_error_start"]


def test_minimises_the_error_in_the_metric_of_the_output(make_case: Callable[..., Any]) -> None:
    heavy = torch.diag(torch.cat((torch.full((4,), 100.0), torch.full((12,), 0.01))))
    block, error = block_of(make_case, metric=heavy)
    starts = starts_of(block, Nearest())
    plain, _ = block_of(make_case)
    assert error(GSQ(steps=100).solve(block, starts)) < 0.97 * error(GSQ(steps=100).solve(plain, starts))


def test_begins_at_the_codes_of_its_start(make_case: Callable[..., Any], uneven_grid: Any) -> None:
    for grid in (GRID, NF4Grid(32), uneven_grid, AffineGrid(2, 32)):
        for candidates in (2, 3, 4):
            block, _ = block_of(make_case, grid=grid)
            for solver in (Nearest(), GPTQ()):
                for name, start in starts_of(block, solver).items():
                    settings = GSQ(candidates=candidates)
                    theta = _Trained.begin(settings, block.problems[name], start, 0, 1).solution().theta
                    torch.testing.assert_close(theta, start.theta, rtol=0, atol=1e-6)


def test_the_gradient_of_the_logits_is_that_of_autograd(make_case: Callable[..., Any]) -> None:
    block, _ = block_of(make_case)
    problem = block.problems["up"]
    start = Nearest().solve(problem)
    trained = _Trained.begin(GSQ(noise=0.0, candidates=4), problem, start, 0, 1)
    logits = trained.logits.double().requires_grad_()
    soft = ((logits / 0.5).softmax(0) * torch.arange(4.0).view(-1, 1, 1)).sum(0)
    gradient = torch.randn(soft.shape, generator=torch.Generator().manual_seed(1))
    (expected,) = torch.autograd.grad((soft * gradient).sum(), logits)
    before = trained.logits.clone()
    # Half of the way from 2 to .125 is 0.5.
    object.__setattr__(trained.settings, "temperature", (2.0, 0.125))
    theta = trained.theta(0.5)
    assert trained.soft is not None
    torch.testing.assert_close(trained.soft.detach(), (soft + trained.lowest).float().detach())
    theta.sum().backward()
    trained.soft.grad = gradient
    assert trained.update(0.5)
    moved = before - trained.logits
    clear = expected.abs() > 1e-9
    assert torch.equal(moved.sign()[clear], expected.sign()[clear].float())


def test_rows_in_turns_reach_all_rows(make_case: Callable[..., Any]) -> None:
    block, error = block_of(make_case)
    starts = starts_of(block, Nearest())
    found = GSQ(steps=200, rows=0.5).solve(block, starts)
    assert error(found) < 0.8 * error(starts)
    grid_codes = [GRID.codes(s["up"].theta, s["up"].parameters) for s in (starts, found)]
    changed = (grid_codes[0] != grid_codes[1]).any(1)
    assert bool(changed[:16].any())
    assert bool(changed[16:].any())
    held = _Trained.begin(GSQ(rows=0.5), block.problems["up"], starts["up"], 1, 2)
    assert held.logits.shape[1] == 16
    assert held.rows == slice(16, 32)


def test_a_loss_that_is_not_finite_keeps_the_best(make_case: Callable[..., Any]) -> None:
    block, _ = block_of(make_case)
    starts = starts_of(block, GPTQ())
    calls = 0

    def run(batch: int, thetas: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        nonlocal calls
        output, target = block.run(batch, thetas)
        calls += thetas["up"].requires_grad
        return (output * float("nan") if calls > 3 and thetas["up"].requires_grad else output), target

    found = GSQ(steps=20).solve(BlockProblem(block.problems, 8, run), starts)
    assert all(torch.equal(found[name].theta, starts[name].theta) for name in starts)
    assert "step 4" in str(found["up"].info["stopped"])
    assert "up" in str(found["up"].info["stopped"])


def test_same_seed_same_result(make_case: Callable[..., Any]) -> None:
    block, _ = block_of(make_case)
    starts = starts_of(block, GPTQ())
    first, second = (GSQ(steps=20).solve(block, starts) for _ in range(2))
    assert all(torch.equal(first[name].theta, second[name].theta) for name in first)


def test_hard_inputs_stay_finite(make_case: Callable[..., Any]) -> None:
    for kind in ("outliers100", "dead", "all dead", "zero"):
        block, _ = block_of(make_case, kind)
        starts = starts_of(block, Nearest())
        found = GSQ(steps=10).solve(block, starts)
        assert all(bool(torch.isfinite(solution.theta).all()) for solution in found.values())
        assert found["up"].info["block_error"] <= found["up"].info["block_error_start"], kind


def test_lion_follows_its_published_update() -> None:
    generator = torch.Generator().manual_seed(0)
    variable, velocity = torch.randn(5, generator=generator), torch.zeros(5)
    expected, lion = variable.double().clone(), Lion(velocity.clone())
    mean = torch.zeros(5).double()
    for _ in range(4):
        gradient = torch.randn(5, generator=generator)
        expected -= 0.1 * (0.9 * mean + 0.1 * gradient.double()).sign()
        mean = 0.99 * mean + 0.01 * gradient.double()
        lion.step(variable, gradient, 0.1)
    torch.testing.assert_close(variable.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"candidates": 5}, {"temperature": (0.1, 1.0)}, {"rows": 0.0}, {"steps": 0}, {"noise": -1.0}]
)
def test_refuses_options_that_mean_nothing(options: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match="is|lies|falls|are"):
        GSQ(**options)


def test_checks_end_with_the_last_step() -> None:
    assert max(Schedule(37, 0.1, 3).checked) == 37
    assert min(Schedule(100, 0.1, 4).checked) > 50
