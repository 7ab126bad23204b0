"""Reconstruction on a small block of two linears with a nonlinearity between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.solvers.awp import AWP
from compress.solvers.base import BlockProblem, Solution
from compress.solvers.reconstruct import Reconstruct, _Trained
from compress.solvers.wanda import Wanda
from compress.structures.grids.integer import IntegerGrid
from compress.structures.sparse.masked import Masked
from compress.structures.sparse.masked_grid import MaskedGrid
from compress.structures.sparse.patterns import NM, Unstructured

FOUR_FIFTHS = Masked(Unstructured(0.8), torch.float32)
TWO_FOUR = Masked(NM(2, 4), torch.float32)


def block_of(
    make_case: Callable[..., Any], structure: Any = FOUR_FIFTHS
) -> tuple[BlockProblem[Any], Callable[..., float]]:
    first = make_case("plain", out=32, columns=32, tokens=512)
    second = make_case("plain", out=16, columns=32, tokens=512)
    inputs = first.inputs.view(8, 64, 32)

    def forward(thetas: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        return torch.nn.functional.silu(5 * hidden @ thetas["up"].T) @ thetas["down"].T

    targets = forward({"up": first.weight, "down": second.weight}, inputs)

    def run(batch: int, thetas: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return forward(thetas, inputs[batch : batch + 1]), targets[batch : batch + 1]

    def error(solutions: Mapping[str, Solution]) -> float:
        thetas = {name: solution.theta for name, solution in solutions.items()}
        return float((forward(thetas, inputs) - targets).square().sum() / targets.square().sum())

    problems = {"up": first.problem(structure), "down": second.problem(structure)}
    return BlockProblem(problems, 8, run), error


def starts_of(block: BlockProblem[Any], solver: Any) -> dict[str, Solution]:
    return {name: solver.solve(problem) for name, problem in block.problems.items()}


@pytest.mark.parametrize("structure", [FOUR_FIFTHS, TWO_FOUR], ids=str)
def test_values_make_up_for_each_other_under_the_starts_mask(
    make_case: Callable[..., Any], structure: Any
) -> None:
    block, error = block_of(make_case, structure)
    starts = starts_of(block, AWP())
    kept = {name: start.theta.clone() for name, start in starts.items()}
    found = Reconstruct().solve(block, starts)
    assert error(found) < 0.9 * error(starts)
    for name, solution in found.items():
        assert torch.equal(starts[name].theta, kept[name])
        assert torch.equal(solution.parameters.mask, starts[name].parameters.mask)
        torch.testing.assert_close(solution.encode(structure).dense(torch.float32), solution.theta)


@pytest.mark.parametrize("structure", [FOUR_FIFTHS, TWO_FOUR], ids=str)
def test_masks_that_move_gain_more(make_case: Callable[..., Any], structure: Any) -> None:
    block, error = block_of(make_case, structure)
    starts = starts_of(block, Wanda())
    held = Reconstruct(steps=300).solve(block, starts)
    moved = Reconstruct(steps=300, masks=0.6).solve(block, starts)
    assert error(moved) < 0.85 * error(held) < 0.85 * error(starts)
    for name, solution in moved.items():
        mask = solution.parameters.mask
        assert int(mask.sum()) == int(starts[name].parameters.mask.sum())
        assert not torch.equal(mask, starts[name].parameters.mask)
        assert torch.equal(structure.pattern.choose(mask.float()), mask)


def test_begins_at_its_start(make_case: Callable[..., Any]) -> None:
    for structure in (FOUR_FIFTHS, TWO_FOUR):
        block, _ = block_of(make_case, structure)
        for name, start in starts_of(block, AWP()).items():
            trained = _Trained.begin(Reconstruct(masks=1.0), block.problems[name], start)
            torch.testing.assert_close(trained.theta(0.0).detach(), start.theta)
            assert torch.equal(trained.mask, start.parameters.mask)
            torch.testing.assert_close(trained.solution().theta, start.theta)


def test_the_gradient_goes_straight_through_a_mask_that_moves(make_case: Callable[..., Any]) -> None:
    block, _ = block_of(make_case)
    problem = block.problems["up"]
    start = Wanda().solve(problem)
    upstream = torch.randn(problem.weight.shape, generator=torch.Generator().manual_seed(0))
    for masks, expected in ((1.0, upstream), (0.0, upstream * start.parameters.mask)):
        trained = _Trained.begin(Reconstruct(masks=masks), problem, start)
        (trained.theta(0.0) * upstream).sum().backward()
        torch.testing.assert_close(trained.values.grad, expected)


def test_a_masked_grid_is_never_worse_than_its_start(make_case: Callable[..., Any]) -> None:
    grid = MaskedGrid(NM(2, 4), IntegerGrid(4, 16, False))
    block, _ = block_of(make_case, grid)
    starts = starts_of(block, AWP())
    found = Reconstruct(steps=40).solve(block, starts)
    assert found["up"].info["block_error"] <= found["up"].info["block_error_start"]
    for solution in found.values():
        torch.testing.assert_close(solution.encode(grid).dense(torch.float32), solution.theta)


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"masks": 1.5}, {"rate": 0.0}, {"judged": 1.0}, {"decay": -1.0}]
)
def test_refuses_options_that_mean_nothing(options: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match="is|lies|are"):
        Reconstruct(**options)
