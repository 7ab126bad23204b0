"""SignRound on a small block of two linears with a nonlinearity between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from compress.solvers.base import BlockProblem, Solution
from compress.solvers.gptq import GPTQ
from compress.solvers.nearest import Nearest
from compress.solvers.signround import SignRound, _Trained
from compress.structures.grids.integer import IntegerGrid
from compress.structures.grids.nf4 import NF4Grid

GRID = IntegerGrid(2, 16, False)


def block_of(
    make_case: Callable[..., Any], kind: str = "plain", grid: Any = GRID
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

    def error(solutions: Mapping[str, Solution]) -> float:
        thetas = {name: solution.theta for name, solution in solutions.items()}
        return float((forward(thetas, inputs) - targets).square().sum() / targets.square().sum())

    return BlockProblem(problems, 8, run), error


def starts_of(block: BlockProblem[Any], solver: Any) -> dict[str, Solution]:
    return {name: solver.solve(problem) for name, problem in block.problems.items()}


def test_lowers_the_error_of_the_output(make_case: Callable[..., Any]) -> None:
    block, error = block_of(make_case)
    for solver, share in ((Nearest(), 0.7), (GPTQ(clip_ratios=(1.0,)), 0.95)):
        starts = starts_of(block, solver)
        kept = {name: start.theta.clone() for name, start in starts.items()}
        found = SignRound(iterations=200).solve(block, starts)
        assert error(found) < share * error(starts)
        assert all(torch.equal(starts[name].theta, theta) for name, theta in kept.items())
        for name, solution in found.items():
            dense = solution.encode(GRID).dense(torch.float32)
            assert torch.allclose(dense, solution.theta, atol=1e-6), name
            assert solution.info["block_error"] <= solution.info["block_error_start"]


def test_begins_at_the_codes_of_its_start(make_case: Callable[..., Any], uneven_grid: Any) -> None:
    for grid in (GRID, NF4Grid(32), uneven_grid):
        block, _ = block_of(make_case, grid=grid)
        for solver in (Nearest(), GPTQ()):
            for name, start in starts_of(block, solver).items():
                theta = _Trained.begin(block.problems[name], start).solution().theta
                torch.testing.assert_close(theta, start.theta, rtol=0, atol=1e-6)


def test_values_need_not_be_evenly_spaced(make_case: Callable[..., Any], uneven_grid: Any) -> None:
    for grid in (NF4Grid(32), uneven_grid):
        block, error = block_of(make_case, grid=grid)
        starts = starts_of(block, Nearest())
        found = SignRound(iterations=100).solve(block, starts)
        assert error(found) < 0.95 * error(starts)
        for solution in found.values():
            projected = grid.project(solution.theta, solution.parameters)
            torch.testing.assert_close(projected, solution.theta, rtol=0, atol=1e-6)


def test_same_seed_same_result(make_case: Callable[..., Any]) -> None:
    block, _ = block_of(make_case)
    starts = starts_of(block, GPTQ())
    first, second = (SignRound(iterations=20).solve(block, starts) for _ in range(2))
    assert all(torch.equal(first[name].theta, second[name].theta) for name in first)


def test_hard_inputs_stay_finite(make_case: Callable[..., Any]) -> None:
    for kind in ("outliers20", "outliers100", "dead", "all dead", "zero"):
        block, error = block_of(make_case, kind)
        starts = starts_of(block, Nearest())
        found = SignRound(iterations=10).solve(block, starts)
        assert all(bool(torch.isfinite(solution.theta).all()) for solution in found.values())
        assert found["up"].info["block_error"] <= found["up"].info["block_error_start"], kind
        assert kind in ("all dead", "zero") or error(found) <= error(starts) * 1.1


def slow_signround(
    weight: Tensor, inputs: Tensor, grid: Any, start: Solution, steps: int, rate: float
) -> Tensor:
    """The weight ``[out, in]`` after some signed steps on one linear layer, in float64, with gradients from autograd."""
    scale, zero = (
        part.double().repeat_interleave(16, 1) for part in (start.parameters.scale, start.parameters.zero)
    )
    codes = (start.theta.double() / scale).round() + zero
    position = (weight.double() / scale + zero).clamp(codes - 0.45, codes + 0.45)
    offset = torch.zeros_like(position, requires_grad=True)
    factor = torch.ones_like(start.parameters.scale).double().requires_grad_()
    for step in range(steps):
        rounded = position + offset
        codes = (rounded + (rounded.detach().round() - rounded.detach())).clamp(0, grid.top)
        theta = (codes - zero) * scale * factor.repeat_interleave(16, 1)
        loss = ((theta - weight.double()) @ inputs.double().T).square().sum()
        gradients = torch.autograd.grad(loss, (offset, factor))
        with torch.no_grad():
            for variable, gradient in zip((offset, factor), gradients, strict=True):
                variable -= gradient.sign() * (1 - step / steps) * rate
            offset.clamp_(-0.5, 0.5)
    codes = (position + offset).detach().round().clamp(0, grid.top)
    return (codes - zero) * scale * factor.detach().repeat_interleave(16, 1)


def test_steps_follow_the_sign_of_the_gradient(make_case: Callable[..., Any]) -> None:
    case = make_case(out=12, columns=32, tokens=128)
    grid = IntegerGrid(4, 16, True, scale_dtype=torch.float32)
    problem = case.problem(grid)
    start = GPTQ().solve(problem)
    trained = _Trained.begin(problem, start)
    for step in range(6):
        with torch.enable_grad():
            ((trained.theta() - case.weight) @ case.inputs.T).square().sum().backward()
        trained.update(0.02 * (1 - step / 6), 0.02 * (1 - step / 6))
    expected = slow_signround(case.weight, case.inputs, grid, start, 6, 0.02)
    close = (trained.solution().theta.double() - expected).abs() < 1e-5
    assert float(close.float().mean()) > 0.97
    assert float((trained.solution().theta - start.theta).abs().max()) > 0
