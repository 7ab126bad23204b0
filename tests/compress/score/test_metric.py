"""What an error costs, against the trace in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from compress.score.metric import Elementwise, Kron, Metric, Side, relative_loss


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sides(size: int, seed: int) -> dict[str, Side]:
    inputs = drawn(3 * size, size, seed=seed)
    return {
        "identity": Side(),
        "diagonal": Side(drawn(size, seed=seed).square()),
        "full": Side(inputs.T @ inputs / len(inputs)),
    }


KINDS = list(itertools.product(("identity", "diagonal", "full"), repeat=2))


@pytest.mark.parametrize("columns", [9, 1500])  # more than one strip
@pytest.mark.parametrize("kinds", KINDS, ids=" and ".join)
def test_two_sides(kinds: tuple[str, str], columns: int) -> None:
    metric = Kron(sides(6, 1)[kinds[0]], sides(columns, 2)[kinds[1]])
    delta = drawn(6, columns, seed=3)
    left, right = metric.left.full(6, "cpu").double(), metric.right.full(columns, "cpu").double()
    product = left @ delta.double() @ right
    assert metric.loss(delta) == pytest.approx(float((product * delta).sum()), rel=1e-5)
    torch.testing.assert_close(metric.apply(delta).double(), product, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(metric.row_losses(delta), (product * delta).sum(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(metric.columns(delta), metric.right.full(columns, "cpu").diagonal())
    elements = torch.outer(left.diagonal(), right.diagonal()).float()
    torch.testing.assert_close(metric.elements(delta).expand(6, columns), elements)
    assert metric.rows_apart == (kinds[0] != "full")


def test_elements_by_themselves() -> None:
    weight, delta = drawn(4, 5).square(), drawn(4, 5, seed=1)
    metric = Elementwise(weight)
    assert metric.loss(delta) == pytest.approx(float((weight * delta.square()).double().sum()))
    torch.testing.assert_close(metric.apply(delta), weight * delta)
    torch.testing.assert_close(metric.row_losses(delta), (weight * delta.square()).double().sum(1))
    torch.testing.assert_close(metric.columns(delta), weight.mean(0))
    assert torch.equal(metric.elements(delta), weight)


@pytest.mark.parametrize(
    "metric",
    [Kron(sides(4, 1)["full"], sides(5, 2)["full"]), Elementwise(drawn(4, 5, seed=3).square())],
    ids=["two sides", "elements"],
)
def test_half_the_gradient_of_the_cost(metric: Metric) -> None:
    delta, step = drawn(4, 5), 1e-2 * drawn(4, 5, seed=1)
    change = metric.loss(delta + step) - metric.loss(delta - step)
    assert change == pytest.approx(4 * float((metric.apply(delta) * step).sum()), rel=1e-3)


def test_losses_relative_to_the_weight() -> None:
    weight = drawn(3, 4)
    assert relative_loss(Kron(), weight, weight) == pytest.approx(1.0)
    assert relative_loss(Kron(), 0.1 * weight, weight) == pytest.approx(0.01)
    assert relative_loss(Kron(), weight, torch.zeros(3, 4)) == 0.0


def test_identities_have_the_size_and_the_device_that_is_asked_for() -> None:
    assert torch.equal(Side().diagonal(3, "cpu"), torch.ones(3))
    assert torch.equal(Side().full(3, "cpu"), torch.eye(3))
    assert Side().full(3, "meta").device.type == "meta"
    assert torch.equal(Side(torch.tensor([2.0, 3.0])).full(2, "cpu"), torch.diag(torch.tensor([2.0, 3.0])))
