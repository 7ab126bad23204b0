"""Refit: the least-squares values on a mask, against dense solves in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.linalg.conjugate_gradient import refit
from compress.score.metric import Elementwise, Kron, Side
from compress.solvers.refit import Refit
from compress.solvers.sparsegpt import SparseGPT
from compress.solvers.wanda import Wanda
from compress.structures.grids.integer import IntegerGrid
from compress.structures.sparse.masked import Masked
from compress.structures.sparse.masked_grid import MaskedGrid
from compress.structures.sparse.patterns import Unstructured

HALF = Masked(Unstructured(0.5), torch.float32)


def exact_values(weight: Tensor, mask: Tensor, gram: Tensor) -> Tensor:
    """Least squares on each row's mask by a dense solve in float64."""
    theta = torch.zeros(weight.shape, dtype=torch.float64)
    for i, kept in enumerate(mask):
        inner = gram.double()[kept][:, kept]
        theta[i, kept] = torch.linalg.lstsq(
            inner, gram.double()[kept] @ weight[i].double(), driver="gelsd"
        ).solution
    return theta


@pytest.mark.parametrize("kind", ["plain", "outliers20", "outliers100", "dead"])
def test_refit_is_least_squares(make_case: Callable[..., Any], kind: str) -> None:
    problem = make_case(kind).problem(HALF)
    assert isinstance(problem.metric, Kron)
    start = Wanda().solve(problem)
    found = Refit(steps=300).solve(problem, start)
    gram = problem.metric.right.full(64, "cpu")
    exact = exact_values(problem.weight, start.parameters.mask, gram)
    reference = problem.metric.loss(problem.weight - exact.float())
    assert problem.metric.loss(problem.weight - found.theta) <= reference * (1 + 1e-4)
    assert torch.equal(found.theta != 0, start.parameters.mask & (found.theta != 0))


def test_refit_never_rises_and_survives_a_singular_gram(hard: Any) -> None:
    structure = HALF if hard.weight.shape[1] > 1 else Masked(Unstructured(0.0), torch.float32)
    problem = hard.problem(structure)
    mask = structure.pattern.choose(hard.weight.square())
    losses = [
        problem.metric.loss(hard.weight - refit(hard.weight, mask, problem.metric, hard.weight, steps=steps))
        for steps in (0, 1, 2, 4, 8, 32)
    ]
    slack = 1e-5 * problem.metric.loss(hard.weight)
    assert all(after <= before + slack for before, after in itertools.pairwise(losses))


def test_refit_in_a_two_sided_metric(make_case: Callable[..., Any]) -> None:
    case = make_case(out=6, columns=16)
    spread = torch.randn(6, 40, generator=torch.Generator().manual_seed(3))
    left, right = spread @ spread.T / 40, case.inputs.T @ case.inputs / len(case.inputs)
    mask = Unstructured(0.5).choose(case.weight.square())
    found = refit(case.weight, mask, Kron(Side(left), Side(right)), case.weight, steps=400, tolerance=1e-7)
    whole = torch.kron(left.double(), right.double())
    kept = mask.flatten()
    exact = torch.zeros(6 * 16, dtype=torch.float64)
    exact[kept] = torch.linalg.solve(whole[kept][:, kept], whole[kept] @ case.weight.double().flatten())
    assert torch.allclose(found.double().flatten(), exact, atol=1e-4)


def test_refit_leaves_an_elementwise_metric_alone(make_case: Callable[..., Any]) -> None:
    case = make_case()
    mask = Unstructured(0.5).choose(case.weight.square())
    found = refit(case.weight, mask, Elementwise(torch.rand_like(case.weight)), case.weight, steps=5)
    assert torch.equal(found, case.weight * mask)


def test_on_a_grid_values_are_taken_only_where_the_loss_falls(make_case: Callable[..., Any]) -> None:
    problem = make_case().problem(MaskedGrid(Unstructured(0.5), IntegerGrid(2, "channel", True)))
    start = Wanda().solve(problem)
    found = Refit().solve(problem, start)
    loss = problem.metric.loss(problem.weight - found.theta)
    assert loss <= problem.metric.loss(problem.weight - start.theta)
    again = Refit().solve(problem, found)
    assert problem.metric.loss(problem.weight - again.theta) <= loss


def test_a_start_that_is_nearer_than_rounded_least_squares_stays(make_case: Callable[..., Any]) -> None:
    structure = MaskedGrid(Unstructured(0.5), IntegerGrid(2, "channel", True))
    problem = make_case("outliers20").problem(structure)
    start = SparseGPT().solve(problem)
    found = Refit().solve(problem, start)
    assert problem.metric.loss(problem.weight - found.theta) <= problem.metric.loss(
        problem.weight - start.theta
    )
