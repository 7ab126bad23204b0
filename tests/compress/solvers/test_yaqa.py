"""YAQA: on one side it is GPTQ, on both rows compensate for each other, on any grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from compress.score.metric import Kron, Side
from compress.solvers.awp import AWP
from compress.solvers.base import Problem
from compress.solvers.gptq import GPTQ
from compress.solvers.nearest import Nearest
from compress.solvers.yaqa import YAQA
from compress.structures.base import SparsityPattern
from compress.structures.grids.integer import IntegerGrid
from compress.structures.grids.nf4 import NF4Grid
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
    problem = problem_of(make_case(out=48, columns=128), structure)
    start = AWP().solve(problem)
    found = YAQA().solve(problem, start)
    assert torch.equal(found.parameters.mask, start.parameters.mask)
    assert not bool(found.theta[~start.parameters.mask].any())
    assert torch.equal(structure.project(found.theta, found.parameters), found.theta)
    assert problem.relative_error(found.theta) < 0.95 * problem.relative_error(start.theta)


def test_uneven_values_gain_from_both_sides_too(make_case: Callable[..., Any], uneven_grid: Any) -> None:
    for grid in (NF4Grid(32), uneven_grid):
        problem = problem_of(make_case(out=48, columns=64), grid)
        start = GPTQ().solve(problem)
        found = YAQA(rows=1).solve(problem, start)
        assert problem.relative_error(found.theta) < 0.9 * problem.relative_error(start.theta)
        projected = grid.project(found.theta, found.parameters)
        torch.testing.assert_close(projected, found.theta, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["plain", "outliers20", "bf16"])
def test_it_never_costs_more_than_its_start(make_case: Callable[..., Any], kind: str) -> None:
    problem = problem_of(make_case(kind, out=24, columns=64))
    solver = YAQA(passes=3)
    best = solver.solve(problem)
    metric = solver._damped(problem.metric, problem.weight)  # type: ignore[arg-type]
    # One pass from a start that was descended to rounds it anew, and that alone is worse.
    again = YAQA(passes=0).solve(problem, best)
    assert metric.loss(problem.weight - again.theta) <= metric.loss(problem.weight - best.theta)
