"""Residual solver: the weight less the factors goes to the inner solver, in the residual's structure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from compress.solvers.eora import EoRA
from compress.solvers.gptq import GPTQ
from compress.solvers.residual import ResidualSolver
from compress.solvers.wanda import Wanda
from compress.structures.grids.integer import IntegerGrid
from compress.structures.low_rank.factors import Factors
from compress.structures.low_rank.sums import FactorsAnd

GRID = IntegerGrid(3, 16, False)
STRUCTURE = FactorsAnd(Factors(rank=4, inside=True), GRID)


def test_without_factors_it_is_the_inner_solver(make_case: Callable[..., Any]) -> None:
    case = make_case()
    found = ResidualSolver(GPTQ()).solve(case.problem(STRUCTURE))
    assert torch.equal(found.theta, GPTQ().solve(case.problem(GRID)).theta)
    assert not bool(found.parameters.factors.dense.any())


def test_the_weight_less_the_factors_is_rounded(make_case: Callable[..., Any]) -> None:
    problem = make_case().problem(STRUCTURE)
    start = EoRA().solve(problem, ResidualSolver(GPTQ()).solve(problem))
    low = start.parameters.factors.dense
    found = ResidualSolver(GPTQ()).solve(problem, start)
    alone = GPTQ().solve(replace(problem, weight=problem.weight - low, structure=GRID))
    assert torch.equal(found.parameters.values, alone.theta)
    assert torch.equal(found.theta, low + alone.theta)
    assert torch.equal(found.parameters.factors.dense, low)
    torch.testing.assert_close(found.encode(STRUCTURE).dense(torch.float32), found.theta, atol=1e-5, rtol=0)


def test_alternating_lowers_the_loss(make_case: Callable[..., Any]) -> None:
    problem = make_case().problem(STRUCTURE)
    solution, losses = None, []
    for _ in range(3):
        solution = EoRA().solve(problem, ResidualSolver(GPTQ()).solve(problem, solution))
        losses.append(problem.relative_error(solution.theta))
    assert losses[1] < losses[0]


def test_it_takes_after_its_solver() -> None:
    for solver in (GPTQ(), Wanda("fisher")):
        wrapped = ResidualSolver(solver)
        assert wrapped.needs == solver.needs
        assert wrapped.score == solver.score
        assert wrapped.guarded == getattr(solver, "guarded", True)
        assert wrapped.true_input == getattr(solver, "true_input", True)
