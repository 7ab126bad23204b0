"""AWP: its steps are projected gradient steps, and more of them never cost more."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.score.metric import Elementwise, Kron, Side
from compress.solvers.awp import _SAFETY, AWP, _largest_eigenvalue
from compress.solvers.base import Problem
from compress.solvers.nearest import Nearest
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


@pytest.mark.parametrize("structure", [HALF, TWO_FOUR], ids=str)
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


def correlated(structure: Structure) -> Problem[Any]:
    """A weight whose inputs are strongly correlated, as those of trained layers are."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 64, generator=generator)
    basis, _ = torch.linalg.qr(torch.randn(64, 64, generator=generator))
    return Problem(weight, structure, Kron(right=Side((basis * torch.logspace(0, -4, 64)) @ basis.T)))


def test_on_a_grid_the_steps_add_up() -> None:
    problem = correlated(IntegerGrid(3, 16, False))
    assert isinstance(problem.metric, Kron)
    gram, weight = problem.metric.right.full(64, "cpu").double(), problem.weight.double()
    start = Nearest().solve(problem)
    scale, zero = (
        part.double().repeat_interleave(16, 1) for part in (start.parameters.scale, start.parameters.zero)
    )
    largest = _largest_eigenvalue(problem.metric, 1 / problem.metric.elements(problem.weight), problem.weight)
    step = 1 / (_SAFETY * largest) / gram.diagonal()
    free, theta, losses = weight.clone(), start.theta.double(), []
    for count in range(5):
        free = free + (1 - count / 5) ** 2 * step * ((weight - theta) @ gram)
        theta = (((free / scale).round() + zero).clamp(0, 7) - zero) * scale
        losses.append(float(((weight - theta) @ gram * (weight - theta)).sum()))
    found = [
        loss for _, loss in AWP(steps=5)._accumulate(problem.weight, start, problem.structure, problem.metric)
    ]
    assert found == pytest.approx(losses, rel=0.02)


def test_on_a_grid_the_steps_of_the_paper_gain_less() -> None:
    problem = correlated(IntegerGrid(3, 16, False))
    ours, paper = (AWP(accumulate=how).solve(problem).theta for how in (True, False))
    nearest = Nearest().solve(problem).theta
    assert problem.relative_error(paper) <= problem.relative_error(nearest)
    assert problem.relative_error(ours) < 0.8 * problem.relative_error(paper)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    out=st.integers(1, 6),
    groups=st.integers(1, 6),
    spread=st.floats(0.0, 4.0),
    pattern=st.sampled_from([Unstructured(0.5), Unstructured(0.75, "layer"), NM(2, 4), NM(1, 4)]),
    share=st.floats(0.05, 1.0),
)
def test_plain_steps_on_a_mask_never_raise_the_loss(
    seed: int, out: int, groups: int, spread: float, pattern: Any, share: float
) -> None:
    """Steps of at most 1 / λmax: the surrogate lies above the loss, and hard thresholding minimises the surrogate."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, 4 * groups, generator=generator).double()
    inputs = torch.randn(3 * groups, 4 * groups, generator=generator).double()
    inputs *= torch.logspace(0, -spread, 4 * groups).double()
    metric = Kron(right=Side(inputs.T @ inputs / (len(inputs) * share)))
    structure = Masked(pattern, torch.float64)
    start = structure.project(weight, structure.fit(weight, metric))
    solver = AWP(steps=15, begin="nearest", normalise=False, momentum=False, refit=0)
    losses = [metric.loss(weight - start)]
    losses += [loss for _, loss in solver._descend(weight, start, structure, metric)]
    assert all(after <= before * (1 + 1e-9) + 1e-12 for before, after in itertools.pairwise(losses))
