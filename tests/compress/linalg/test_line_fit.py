"""Scales and biases by least squares, beside a solution in float64 over all features at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress.linalg import line_fit
from compress.linalg.line_fit import line_steps
from compress.score.metric import Kron, Side
from compress.solvers.base import Problem
from compress.solvers.coordinate_descent import CoordinateDescent
from compress.solvers.gptq import GPTQ
from compress.solvers.group_scales import GroupScales
from compress.structures.base import HasShifts, RefitsScales
from compress.structures.grids.affine import AffineGrid

OUT, GROUPS, WIDTH = 7, 3, 32


def case() -> tuple[Tensor, Tensor]:
    """A weight ``[out, in]`` whose groups lie off zero, and the Gram matrix of its inputs."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(OUT, GROUPS * WIDTH, generator=generator) + 0.7
    inputs = torch.randn(400, GROUPS * WIDTH, generator=generator)
    inputs = inputs @ torch.randn(GROUPS * WIDTH, GROUPS * WIDTH, generator=generator) / 10
    return weight, inputs.T @ inputs / len(inputs)


@pytest.mark.parametrize("memory", [1 << 26, 1])
def test_the_steps_solve_the_normal_equations(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_fit, "_BYTES", memory)
    _, gram = case()
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 4, (OUT, GROUPS * WIDTH), generator=generator).float()
    error = torch.randn(OUT, GROUPS * WIDTH, generator=generator)
    found = line_steps(error, codes, gram, GROUPS)
    for row in range(OUT):
        features = torch.zeros(GROUPS * WIDTH, GROUPS, 2, dtype=torch.float64)
        for group in range(GROUPS):
            columns = slice(group * WIDTH, (group + 1) * WIDTH)
            features[columns, group, 0], features[columns, group, 1] = codes[row, columns].double(), 1
        flat = features.view(-1, 2 * GROUPS)
        root = torch.linalg.cholesky(gram.double() + 1e-9 * torch.eye(len(gram))).T
        best = torch.linalg.lstsq(root @ flat, root @ error[row].double()).solution.view(GROUPS, 2)
        torch.testing.assert_close(found[row].double(), best, rtol=2e-2, atol=2e-3)


def test_a_group_of_one_code_stays_finite() -> None:
    _, gram = case()
    codes = torch.zeros(OUT, GROUPS * WIDTH)
    codes[:, WIDTH:] = 2
    assert bool(torch.isfinite(line_steps(torch.ones_like(codes), codes, gram, GROUPS)).all())


def test_an_affine_grid_is_refitted_and_shifted_by_the_solvers() -> None:
    weight, gram = case()
    grid = AffineGrid(2, WIDTH)
    assert isinstance(grid, RefitsScales)
    assert isinstance(grid, HasShifts)
    problem = Problem(weight, grid, Kron(right=Side(gram)))
    start = GPTQ(clip_ratios=(1.0,)).solve(problem)
    theta, parameters = grid.refit(weight, start.theta, start.parameters, gram)
    before, after = (problem.metric.loss(weight - t) for t in (start.theta, theta))
    assert after < 0.97 * before
    assert torch.equal(grid.codes(theta, parameters), grid.codes(start.theta, start.parameters))
    dense = grid.encode(theta, parameters).dense(torch.float32)
    torch.testing.assert_close(dense, theta, rtol=0, atol=1e-6)
    grouped = GroupScales().solve(problem, start)
    moved = CoordinateDescent().solve(problem, grouped)
    losses = [problem.metric.loss(weight - s.theta) for s in (start, grouped, moved)]
    assert losses[2] < losses[1] < losses[0]
    steps = {round(float((p.zero - parameters.zero).mean()), 2) for p in grid.shifted(parameters)}
    assert steps == {-0.5, -0.25, 0.25, 0.5}
