"""AWP: its steps are projected gradient steps, and more of them never cost more."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from compress.score.metric import Elementwise, Kron, Side
from compress.solvers.awp import _SAFETY, AWP, _largest_eigenvalue
from compress.solvers.base import Problem
from compress.solvers.wanda import Wanda
from compress.structures.base import Structure
from compress.structures.grids.integer import IntegerGrid
from compress.structures.sparse.masked import Masked
from compress.structures.sparse.patterns import NM, Unstructured

HALF = Masked(Unstructured(0.5), torch.float32)
TWO_FOUR = Masked(NM(2, 4), torch.float32)


def test_awp_steps_are_projected_gradient_steps(make_case: Callable[..., Any]) -> None:
    problem = make_case("plain").problem(HALF)
    assert isinstance(problem.metric, Kron)
    gram, weight = problem.metric.right.full(64, "cpu").double(), problem.weight.double()
    step = 1 / (1.02 * torch.linalg.eigvalsh(gram).max())
    plain = AWP(steps=10, begin="nearest", normalise=False, momentum=False, refit=0)
    theta = Wanda().solve(problem).theta.double()
    for _ in range(10):
        moved = theta + step * (weight - theta) @ gram
        theta = moved * Unstructured(0.5).choose(moved.square().float())
    found = problem.relative_error(plain.solve(problem).theta)
    assert found == pytest.approx(problem.relative_error(theta.float()), rel=2e-3)


def test_momentum_is_that_of_fista_and_begins_anew_when_the_loss_rises() -> None:
    """Beck and Teboulle 2009, eq. 4.1 to 4.3, with O'Donoghue and Candès's restart by the function's value; in float64."""
    generator, pattern = torch.Generator().manual_seed(0), Unstructured(0.5)
    weight = torch.randn(8, 32, generator=generator).double()
    basis, _ = torch.linalg.qr(torch.randn(32, 32, generator=generator).double())
    gram = (basis * torch.logspace(0, -3, 32).double()) @ basis.T
    metric = Kron(right=Side(gram))
    step = 1 / (_SAFETY * _largest_eigenvalue(metric, torch.ones_like(weight), weight))
    start = theta = ahead = weight * pattern.choose(weight.square().float())
    last, inertia, restarts, losses = float("inf"), 1.0, 0, []
    for _ in range(90):
        moved = ahead + step * (weight - ahead) @ gram
        iterate = moved * pattern.choose(moved.square())
        loss = float(((weight - iterate) @ gram * (weight - iterate)).sum())
        if loss > last:
            inertia, ahead, restarts = 1.0, iterate, restarts + 1
        else:
            following = (1 + (1 + 4 * inertia**2) ** 0.5) / 2
            ahead = iterate + (inertia - 1) / following * (iterate - theta)
            inertia = following
        theta, last = iterate, loss
        losses.append(loss)
    assert restarts > 0
    solver = AWP(steps=90, begin="nearest", normalise=False, momentum=True, refit=0)
    iterates = solver._descend(weight, start, Masked(pattern, torch.float64), metric)
    assert [loss for _, loss in iterates] == pytest.approx(losses, rel=1e-6)


@pytest.mark.parametrize("structure", [HALF, TWO_FOUR, IntegerGrid(3, 16, False)], ids=str)
def test_more_steps_of_awp_never_harm(make_case: Callable[..., Any], structure: Structure) -> None:
    problem = make_case("outliers20").problem(structure)
    errors = [problem.relative_error(AWP(steps=steps).solve(problem).theta) for steps in (0, 5, 20, 60)]
    # The refit that ends each run is done to a tolerance.
    assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(errors))


def test_where_elements_do_not_interact_the_projection_is_the_answer(make_case: Callable[..., Any]) -> None:
    weight = make_case().weight
    cost = torch.rand(weight.shape, generator=torch.Generator().manual_seed(5)) + 0.1
    problem = Problem(weight, HALF, Elementwise(cost))
    found = AWP().solve(problem)
    assert torch.equal(found.parameters.mask, HALF.pattern.choose(weight.square() * cost))
    assert torch.equal(found.theta, weight * found.parameters.mask)
