"""Mask search on a small block of two linears with a nonlinearity between; the random null."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.solvers.base import BlockProblem, Solution
from compress.solvers.lottery import Lottery
from compress.solvers.nearest import Nearest
from compress.solvers.random import RandomSearch
from compress.structures.base import Structure
from compress.structures.grids.integer import IntegerGrid
from compress.structures.sparse.masked import Masked
from compress.structures.sparse.patterns import NM, Blocks, Unstructured

PATTERNS: dict[str, Structure] = {
    "rows": Masked(Unstructured(0.5), torch.float32),
    "layer": Masked(Unstructured(0.7, "layer"), torch.float32),
    "two of four": Masked(NM(2, 4), torch.float32),
    "blocks": Masked(Blocks(0.5, 4, 4), torch.float32),
}


def block_of(
    make_case: Callable[..., Any], structure: Structure
) -> tuple[BlockProblem, Callable[..., float]]:
    first = make_case("outliers20", out=32, columns=32, tokens=512)
    second = make_case("plain", out=16, columns=32, tokens=512)
    inputs = first.inputs.view(8, 64, 32)
    dense = {"up": first.weight, "down": second.weight}

    def forward(thetas: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        return torch.nn.functional.silu(5 * hidden @ thetas["up"].T) @ thetas["down"].T

    targets = forward(dense, inputs)

    def run(batch: int, thetas: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return forward(thetas, inputs[batch : batch + 1]), targets[batch : batch + 1]

    problems = {
        name: replace(case.problem(IntegerGrid(4, 16)), structure=structure)
        for name, case in (("up", first), ("down", second))
    }

    def error(solutions: Mapping[str, Solution]) -> float:
        thetas = {name: solution.theta for name, solution in solutions.items()}
        return float((forward(thetas, inputs) - targets).square().sum() / targets.square().sum())

    return BlockProblem(problems, 8, run), error


@pytest.mark.parametrize("pattern", PATTERNS)
def test_finds_a_better_mask_of_frozen_weights(make_case: Callable[..., Any], pattern: str) -> None:
    structure: Any = PATTERNS[pattern]
    block, error = block_of(make_case, structure)
    starts = {name: RandomSearch().solve(problem) for name, problem in block.problems.items()}
    masks = {name: start.parameters.mask.clone() for name, start in starts.items()}
    found = Lottery(steps=60).solve(block, starts)
    again = Lottery(steps=60).solve(block, starts)
    assert error(found) < 0.8 * error(starts)
    for name, solution in found.items():
        mask = solution.parameters.mask
        assert int(mask.sum()) == structure.pattern.kept(mask.shape)
        assert torch.equal(solution.theta, block.problems[name].weight * mask)
        assert torch.equal(starts[name].parameters.mask, masks[name])
        assert torch.equal(solution.theta, again[name].theta)
        if pattern == "two of four":
            assert int(mask.view(len(mask), -1, 4).sum(-1).max()) == 2


def test_weights_without_a_gradient_stay(make_case: Callable[..., Any]) -> None:
    block, _ = block_of(make_case, PATTERNS["rows"])
    dead = BlockProblem(
        block.problems, 1, lambda batch, thetas: (0 * thetas["up"].sum() + torch.zeros(1), torch.zeros(1))
    )
    starts = {name: Nearest().solve(problem) for name, problem in block.problems.items()}
    found = Lottery(steps=3).solve(dead, starts)
    assert all(torch.equal(found[name].theta, start.theta) for name, start in starts.items())


@pytest.mark.parametrize("structure", [*PATTERNS.values(), IntegerGrid(3, 16, False)])
def test_more_draws_are_no_worse_and_all_are_allowed(
    make_case: Callable[..., Any], structure: Structure
) -> None:
    problem = replace(make_case().problem(IntegerGrid(3, 16)), structure=structure)
    one, many = RandomSearch().solve(problem), RandomSearch(tries=20).solve(problem)
    nearest = Nearest().solve(problem)
    errors = [problem.relative_error(each.theta) for each in (many, one)]
    assert problem.relative_error(nearest.theta) < errors[0] < errors[1]
    assert torch.equal(many.theta, RandomSearch(tries=20).solve(problem).theta)
    assert not torch.equal(one.theta, RandomSearch().solve(replace(problem, seed=1)).theta)
    assert torch.allclose(many.encode(structure).dense(torch.float32), many.theta, atol=1e-6)
