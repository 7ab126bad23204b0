"""Least squares on a mask, and of scales, against float64 normal equations."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from compress.linalg.conjugate_gradient import refit, refit_factors
from compress.score.metric import Elementwise, Kron, Side


def problem(rows: int = 6, columns: int = 10) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight, mask, and the matrices of both sides."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator)
    mask = torch.rand(rows, columns, generator=generator) < 0.5
    inputs, gradients = (
        torch.randn(40, columns, generator=generator),
        torch.randn(40, rows, generator=generator),
    )
    return weight, mask, gradients.T @ gradients / 40, inputs.T @ inputs / 40


def least_squares(weight: Tensor, mask: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The minimum over the elements of the mask: its normal equations over all of them at once, float64."""
    whole = torch.kron(left.double(), right.double())
    free = mask.flatten().nonzero().squeeze(1)
    target = whole @ weight.double().flatten()
    theta = torch.zeros(weight.numel(), dtype=torch.float64)
    theta[free] = torch.linalg.solve(whole[free[:, None], free], target[free])
    return theta.view(weight.shape)


@pytest.mark.parametrize("side", ["right", "left diagonal", "both"])
def test_refit_reaches_the_minimum(side: str) -> None:
    weight, mask, left, right = problem()
    if side == "right":
        metric, left = Kron(right=Side(right)), torch.eye(6)
    elif side == "left diagonal":
        metric, left = Kron(Side(left.diagonal()), Side(right)), torch.diag(left.diagonal())
    else:
        metric = Kron(Side(left), Side(right))
    theta = refit(weight, mask, metric, weight, steps=200, tolerance=1e-7)
    torch.testing.assert_close(theta.double(), least_squares(weight, mask, left, right), rtol=0, atol=1e-4)
    assert not bool(theta[~mask].any())


def test_no_step_raises_the_cost() -> None:
    weight, mask, left, right = problem()
    metric = Kron(Side(left), Side(right))
    losses = [metric.loss(weight - refit(weight, mask, metric, weight, steps=steps)) for steps in range(12)]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in zip(losses, losses[1:], strict=False))
    assert losses[-1] < 0.9 * losses[0]


def test_directions_that_cost_nothing_stay_where_they_began() -> None:
    weight, mask, _, right = problem()
    right[3] = right[:, 3] = 0
    start = torch.full_like(weight, 7.0)
    theta = refit(weight, mask, Kron(right=Side(right)), start, steps=50)
    assert torch.equal(theta[:, 3], 7.0 * mask[:, 3])
    assert bool(torch.isfinite(theta).all())


def test_elements_by_themselves_are_the_weight_where_they_cost_anything() -> None:
    weight, mask, _, _ = problem()
    cost = torch.ones_like(weight)
    cost[2] = 0
    theta = refit(weight, mask, Elementwise(cost), torch.full_like(weight, 7.0), steps=1)
    expected = weight * mask
    expected[2] = 7.0 * mask[2]
    assert torch.equal(theta, expected)


def test_factors_of_groups_reach_the_minimum() -> None:
    weight, _, left, right = problem(4, 8)
    theta = weight + 0.1 * torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    groups = 2
    factor = refit_factors(weight, theta, Kron(Side(left), Side(right)), groups, steps=60)
    whole = torch.kron(left.double(), right.double())
    basis = torch.zeros(32, 4 * groups, dtype=torch.float64)
    for row in range(4):
        for group in range(groups):
            part = torch.zeros(4, 8, dtype=torch.float64)
            part[row, 4 * group : 4 * group + 4] = theta[row, 4 * group : 4 * group + 4].double()
            basis[:, row * groups + group] = part.flatten()
    exact = torch.linalg.solve(basis.T @ whole @ basis, basis.T @ whole @ weight.double().flatten())
    assert float(exact.min()) > 0.3
    assert float(exact.max()) < 3.9  # the limits are not in the way
    torch.testing.assert_close(factor.double(), exact.view(4, groups), rtol=0, atol=1e-4)


def test_factors_stay_within_their_limits() -> None:
    weight = torch.ones(1, 4)
    metric = Kron(right=Side(torch.ones(4)))
    assert float(refit_factors(weight, weight / 100, metric, 1)) == 4.0
    assert float(refit_factors(weight, 100 * weight, metric, 1)) == 0.25


def test_a_step_that_gains_little_is_the_last() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 48, generator=generator)
    inputs = torch.randn(256, 48, generator=generator) @ (
        torch.eye(48) + torch.randn(48, 48, generator=generator) / 7
    )
    metric = Kron(right=Side(inputs.T @ inputs / 256))
    mask = torch.rand(weight.shape, generator=generator) > 0.5
    losses = [metric.loss(weight - refit(weight, mask, metric, weight, steps=steps)) for steps in range(30)]
    gains = [1 - after / before for before, after in itertools.pairwise(losses)]
    last = next(number for number, gain in enumerate(gains) if gain < 0.01)
    found = metric.loss(weight - refit(weight, mask, metric, weight, steps=100, gain=0.01))
    assert found == pytest.approx(losses[last + 1], rel=1e-4)
    assert last > 2
