"""Nearest: the projection of the fitted weight, whatever the metric or an earlier solver says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from compress.solvers.base import Solution
from compress.solvers.nearest import Nearest
from compress.structures.grids.integer import IntegerGrid


def test_is_the_projection_of_the_weight(make_case: Callable[..., Any]) -> None:
    grid = IntegerGrid(4, 16, False)
    problem = make_case().problem(grid, true_input=True)
    found = Nearest().solve(problem, Solution(torch.zeros_like(problem.weight), None))
    parameters = grid.fit(problem.weight, problem.metric)
    assert torch.equal(found.theta, grid.project(problem.weight, parameters))
    assert torch.equal(found.parameters.scale, parameters.scale)
