"""Mask search on a small block of two linears with a nonlinearity between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.solvers.base import BlockProblem, Solution
from compress.solvers.lottery import Lottery, _Scores
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
) -> tuple[BlockProblem[Any], Callable[..., float]]:
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
    flat = BlockProblem(
        block.problems, 1, lambda batch, thetas: (0 * thetas["up"].sum() + torch.zeros(1), torch.zeros(1))
    )
    starts = {name: Nearest().solve(problem) for name, problem in block.problems.items()}
    found = Lottery(steps=3).solve(flat, starts)
    assert all(torch.equal(found[name].theta, start.theta) for name, start in starts.items())


def test_one_step_swaps_the_elements_of_the_largest_slopes(make_case: Callable[..., Any]) -> None:
    """With all swaps allowed and one step, the mask is the pattern's choice of ``1 or 0.99 − rate · g·w / max|g·w|``."""
    block, _ = block_of(make_case, PATTERNS["rows"])
    starts = {name: RandomSearch().solve(problem) for name, problem in block.problems.items()}
    thetas = {name: start.theta.clone().requires_grad_() for name, start in starts.items()}
    output, target = block.run(0, thetas)
    (output - target).square().sum(-1).mean().backward()
    scores = {name: _Scores.begin(problem, starts[name]) for name, problem in block.problems.items()}
    for name, problem in block.problems.items():
        gradient = thetas[name].grad
        scores[name].follow(gradient, 0.5, 0.9, 1.0)
        slope = gradient.double() * problem.weight.double()
        expected = torch.where(starts[name].parameters.mask, 1.0, 0.99) - 0.5 * slope / slope.abs().max()
        chosen = problem.structure.pattern.choose((expected - expected.min() + 1e-3).float())
        assert float((scores[name].mask == chosen).float().mean()) > 0.99
        assert not torch.equal(scores[name].mask, starts[name].parameters.mask)
