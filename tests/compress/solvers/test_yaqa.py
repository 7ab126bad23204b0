"""Rounding and descent in a two-sided metric, against slow float64 loops over single elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.linalg.admm import split
from compress.linalg.cholesky import inverse_root
from compress.linalg.conjugate_gradient import refit_factors
from compress.linalg.factor_cache import FactorCache
from compress.linalg.rounding import EvenlySpaced
from compress.linalg.two_sided import descend_both, round_both
from compress.score.metric import Kron, Side
from compress.solvers.awp import AWP
from compress.solvers.base import Problem, Solution
from compress.solvers.gptq import GPTQ
from compress.solvers.nearest import Nearest
from compress.solvers.yaqa import YAQA
from compress.structures.base import SparsityPattern
from compress.structures.grids.integer import IntegerGrid
from compress.structures.sparse.masked_grid import MaskedGrid
from compress.structures.sparse.patterns import NM, Unstructured

GRID = IntegerGrid(3, 16, False, scale_dtype=torch.float32)


def two_sided(case: Any) -> Kron:
    """A metric whose rows hang together as outputs of a network do."""
    out = case.weight.shape[0]
    generator = torch.Generator().manual_seed(2)
    output_gradients = torch.randn(4 * out, out, generator=generator) @ (
        torch.eye(out) + 0.5 * torch.randn(out, out, generator=generator) / out**0.5
    )
    gram = case.inputs.T @ case.inputs / len(case.inputs)
    return Kron(Side(output_gradients.T @ output_gradients / len(output_gradients)), Side(gram))


def problem_of(case: Any, structure: Any = GRID) -> Problem[Any]:
    return Problem(case.weight, structure, two_sided(case))


def feedback(matrix: Tensor) -> Tensor:
    """The unit upper ``M`` in float64 by which what is still free makes up best for what is settled."""
    root = torch.linalg.cholesky(torch.linalg.inv(matrix.double())).T
    return torch.linalg.inv(root / root.diagonal().unsqueeze(1))


def slow_round(target: Tensor, levels: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Element by element to the nearest of ``levels`` ``[out, in, count]``, with the errors so far of rows above, of columns
    to the left and of both."""
    above, beside = feedback(left), feedback(right)
    values, errors = torch.zeros_like(target).double(), torch.zeros_like(target).double()
    for i in range(target.shape[0]):
        for j in range(target.shape[1]):
            down, across = above[:i, i], beside[:j, j]
            aim = (
                target[i, j] + down @ errors[:i, j] + errors[i, :j] @ across + down @ errors[:i, :j] @ across
            )
            values[i, j] = levels[i, j][(aim - levels[i, j]).abs().argmin()]
            errors[i, j] = target[i, j] - values[i, j]
    return values


def grid_of(problem: Problem[Any], start: Solution) -> EvenlySpaced:
    rounder: EvenlySpaced = problem.structure.element_rounder(start.parameters, problem.shape)
    return rounder


@pytest.mark.parametrize("columns", [5, 16, 128])
@pytest.mark.parametrize("kind", ["even", "uneven"])
def test_tiles_of_one_row_are_the_papers_rounding(
    make_case: Callable[..., Any], uneven_grid: Any, columns: int, kind: str
) -> None:
    grid: Any = GRID if kind == "even" else uneven_grid
    problem = problem_of(make_case(out=7, columns=32), grid)
    start = Nearest().solve(problem)
    every = [torch.full((7, 32), float(code)) for code in range(grid.top + 1)]
    levels = torch.stack([grid.values(codes, start.parameters) for codes in every], -1).double()
    left, right = (
        inverse_root(s, torch.empty(1, n), 0.0, descending=False)
        for s, n in zip(sides(problem), (7, 32), strict=True)
    )
    rounder = grid.element_rounder(start.parameters, (7, 32))
    found = round_both(problem.weight, rounder, left.root, right.root, 1, columns)
    reference = slow_round(problem.weight, levels, *(side.matrix for side in sides(problem)))
    assert torch.allclose(found.double(), reference, atol=1e-6)


def sides(problem: Problem[Any]) -> tuple[Side, Side]:
    assert isinstance(problem.metric, Kron)
    return problem.metric.left, problem.metric.right


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_descent_lowers_the_loss_and_stays_on_the_grid(make_case: Callable[..., Any], rows: int) -> None:
    problem = problem_of(make_case("outliers20", out=21, columns=48))
    start = Nearest().solve(problem)
    grid = grid_of(problem, start)
    left, right = (side.matrix for side in sides(problem))
    assert left is not None
    assert right is not None
    theta, losses = start.theta, [problem.metric.loss(problem.weight - start.theta)]
    for _ in range(3):
        theta = descend_both(problem.weight, theta, grid, left, right, rows, 16)
        losses.append(problem.metric.loss(problem.weight - theta))
        codes = (theta - grid.low) / grid.step
        assert torch.allclose(codes, codes.round().clamp(0, grid.top), atol=1e-4)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]


def test_descent_of_one_element_is_exact(make_case: Callable[..., Any]) -> None:
    """Where only one element can move, it goes where the loss is least."""
    problem = problem_of(make_case(out=5, columns=16))
    start = Nearest().solve(problem)
    grid = grid_of(problem, start)
    for i, j in ((0, 0), (3, 7), (4, 15)):
        step = torch.zeros_like(grid.step)
        step[i, j] = grid.step[i, j]
        low = start.theta.clone()
        low[i, j] = grid.low[i, j]
        left, right = (side.matrix for side in sides(problem))
        assert left is not None
        assert right is not None
        found = descend_both(
            problem.weight, start.theta, EvenlySpaced(low, step, grid.top), left, right, 1, 4
        )
        trials = []
        for code in range(grid.top + 1):
            trial = start.theta.clone()
            trial[i, j] = low[i, j] + code * step[i, j]
            trials.append(problem.metric.loss(problem.weight - trial))
        assert problem.metric.loss(problem.weight - found) == pytest.approx(min(trials), rel=1e-5)


def test_without_a_left_side_it_begins_as_gptq(make_case: Callable[..., Any]) -> None:
    case = make_case(out=9, columns=64)
    problem = case.problem(GRID)
    start = Nearest().solve(problem)
    plain = GPTQ(clip_ratios=(1.0,)).solve(problem)
    found = YAQA(passes=0).solve(problem, start)
    assert torch.allclose(found.theta, plain.theta, atol=1e-6)


@pytest.mark.parametrize("kind", ["plain", "outliers20", "outliers100", "bf16"])
def test_rows_that_make_up_for_each_other_cost_less(make_case: Callable[..., Any], kind: str) -> None:
    problem = problem_of(make_case(kind, out=48, columns=64))
    start = GPTQ().solve(problem)
    found = YAQA().solve(problem, start)
    finer = YAQA(rows=1).solve(problem, start)
    once = YAQA(rows=1, passes=0).solve(problem, start)
    assert problem.relative_error(found.theta) < 0.85 * problem.relative_error(start.theta)
    assert problem.relative_error(finer.theta) <= problem.relative_error(once.theta)
    assert 0 < float(found.info["yaqa_gain"]) < 1


@pytest.mark.parametrize("pattern", [Unstructured(0.5), NM(2, 4)], ids=str)
def test_a_mask_is_kept(make_case: Callable[..., Any], pattern: SparsityPattern) -> None:
    structure = MaskedGrid(pattern, GRID)
    problem = problem_of(make_case(out=24, columns=64), structure)
    start = AWP().solve(problem)
    found = YAQA().solve(problem, start)
    assert torch.equal(found.parameters.mask, start.parameters.mask)
    assert not bool(found.theta[~start.parameters.mask].any())
    assert torch.equal(structure.project(found.theta, found.parameters), found.theta)
    assert problem.relative_error(found.theta) < 0.95 * problem.relative_error(start.theta)


def test_factors_are_least_squares_over_all_rows(make_case: Callable[..., Any]) -> None:
    problem = problem_of(make_case(out=6, columns=32))
    theta = Nearest().solve(problem).theta.double()
    left, right = (side.matrix.double() for side in sides(problem))  # type: ignore[union-attr]
    units = []
    for row in range(6):
        for group in range(2):
            unit = torch.zeros_like(theta)
            unit[row, group * 16 : (group + 1) * 16] = theta[row, group * 16 : (group + 1) * 16]
            units.append(unit)
    normal = torch.stack([torch.stack([((left @ a @ right) * b).sum() for b in units]) for a in units])
    goal = torch.stack([((left @ problem.weight.double() @ right) * b).sum() for b in units])
    expected = torch.linalg.solve(normal, goal).view(6, 2)
    metric = Kron(Side(left), Side(right))
    found = refit_factors(problem.weight.double(), theta, metric, 2, steps=60)
    assert torch.allclose(found, expected.clamp(0.25, 4), atol=1e-6)


def test_splitting_looks_at_both_sides(make_case: Callable[..., Any]) -> None:
    """The mask found with the left side costs less than the one found without."""
    case = make_case("outliers20", out=32, columns=48)
    metric = two_sided(case)
    pattern = Unstructured(0.6, "layer")

    def cost(mask: Tensor) -> float:
        return metric.loss(case.weight - _least(case.weight, mask, metric))

    assert cost(split(case.weight, metric, pattern.choose, 300, FactorCache())) < 0.98 * cost(
        split(case.weight, Kron(right=metric.right), pattern.choose, 300, FactorCache())
    )


def _least(weight: Tensor, mask: Tensor, metric: Kron) -> Tensor:
    """The best values on a mask, by one dense solve in float64."""
    assert metric.left.matrix is not None
    assert metric.right.matrix is not None
    whole = torch.kron(metric.left.matrix.double(), metric.right.matrix.double())
    free = mask.flatten()
    goal = (whole @ weight.double().flatten())[free]
    values = torch.zeros(weight.numel(), dtype=torch.float64)
    values[free] = torch.linalg.solve(whole[free][:, free], goal)
    return values.view(weight.shape).float()
