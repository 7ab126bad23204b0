"""AWQ's clips: against a search over all ranges by hand, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from compress.score.metric import Kron, Side
from compress.solvers.awq_clips import AWQClips
from compress.solvers.base import Problem
from compress.structures.grids.integer import IntegerGrid


def _with_outliers(problem: Problem[Any]) -> None:
    problem.weight[:, ::16] *= 6


def test_every_group_of_every_row_has_the_range_of_least_output_error(make_case: Callable[..., Any]) -> None:
    grid = IntegerGrid(3, 16)
    problem = make_case().problem(grid)
    _with_outliers(problem)
    solver = AWQClips(points=10, smallest=0.55)
    found = solver.solve(problem)
    weight, gram = problem.weight.double(), problem.metric.right.matrix.double()
    for row in range(0, weight.shape[0], 5):
        for group in range(weight.shape[1] // 16):
            columns = slice(16 * group, 16 * (group + 1))
            part, corner = weight[row, columns], gram[columns, columns]
            errors = []
            for ratio in torch.linspace(1, 0.55, 10):
                scale = -ratio.double() * part[part.abs().argmax()] / 4
                rounded = (part / scale).round().clamp(-4, 3) * scale
                errors.append(float((part - rounded) @ corner @ (part - rounded)))
            delta = part - found.theta[row, columns].double()
            assert float(delta @ corner @ delta) <= min(errors) * 1.03


def test_outliers_are_clipped_and_the_error_falls(make_case: Callable[..., Any]) -> None:
    grid = IntegerGrid(3, 16)
    problem = make_case().problem(grid)
    _with_outliers(problem)
    found = AWQClips().solve(problem)
    plain = grid.project(problem.weight, grid.fit(problem.weight, problem.metric))
    assert found.info["clipped_groups"] > 0.2
    corner = Kron(
        right=Side(
            torch.block_diag(
                *(problem.metric.right.matrix[i : i + 16, i : i + 16] for i in range(0, problem.shape[1], 16))
            )
        )
    )
    assert corner.loss(problem.weight - found.theta) < corner.loss(problem.weight - plain)


def test_one_point_is_nearest_and_so_is_a_shared_range(make_case: Callable[..., Any]) -> None:
    for grid, solver in ((IntegerGrid(4, 16), AWQClips(points=1)), (IntegerGrid(4, "tensor"), AWQClips())):
        problem = make_case().problem(grid)
        plain = grid.project(problem.weight, grid.fit(problem.weight, problem.metric))
        torch.testing.assert_close(solver.solve(problem).theta, plain)


@pytest.mark.parametrize("options", [{"points": 0}, {"smallest": 0.0}, {"smallest": 1.5}])
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="points is at least 1"):
        AWQClips(**options)
