"""Random search: unbiased roundings, masks that the pattern allows, and the best of several draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from compress.solvers.nearest import Nearest
from compress.solvers.random import RandomSearch
from compress.structures.grids.integer import IntegerGrid
from compress.structures.sparse.masked import Masked
from compress.structures.sparse.patterns import NM


@pytest.mark.parametrize("kind", ["even", "uneven"])
def test_roundings_take_a_neighbour_and_are_unbiased(
    make_case: Callable[..., Any], uneven_grid: Any, kind: str
) -> None:
    grid: Any = IntegerGrid(3, 16, False) if kind == "even" else uneven_grid
    problem = make_case().problem(grid)
    parameters = grid.fit(problem.weight, problem.metric)
    position = grid.position(problem.weight, parameters)
    lower = grid.values(position.floor().clamp(0, grid.top), parameters)
    upper = grid.values(position.ceil().clamp(0, grid.top), parameters)
    draws = torch.stack([RandomSearch().solve(replace(problem, seed=seed)).theta for seed in range(400)])
    near = (draws - lower).abs().minimum((draws - upper).abs())
    assert float(near.max()) < 1e-6
    inside = (position >= 0) & (position <= grid.top) & (upper - lower > 1e-5)
    error = (draws.mean(0) - problem.weight).abs() / (upper - lower)
    assert float(inside.float().mean()) > 0.5
    assert float(error[inside].max()) < 5 * 0.5 / 400**0.5
    assert float(draws.std(0)[inside].mean()) > 0


def test_masks_are_drawn_from_the_pattern(make_case: Callable[..., Any]) -> None:
    problem = make_case().problem(Masked(NM(2, 4), torch.float32))
    masks = [RandomSearch().solve(replace(problem, seed=seed)).parameters.mask for seed in range(200)]
    assert all(bool((mask.view(24, -1, 4).sum(-1) == 2).all()) for mask in masks)
    share = torch.stack(masks).float().mean(0)
    assert float((share - 0.5).abs().max()) < 5 * 0.5 / 200**0.5


def test_more_tries_and_an_earlier_solution_never_cost_more(make_case: Callable[..., Any]) -> None:
    problem = make_case().problem(IntegerGrid(3, 16, False))
    losses = [
        problem.metric.loss(problem.weight - RandomSearch(tries).solve(problem).theta) for tries in (1, 5, 20)
    ]
    assert losses[0] >= losses[1] >= losses[2]
    start = Nearest().solve(problem)
    assert torch.equal(RandomSearch(20).solve(problem, start).theta, start.theta)


def test_no_tries_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        RandomSearch(0)
