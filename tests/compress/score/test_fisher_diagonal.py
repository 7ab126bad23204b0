"""The Fisher diagonal: each element costs its own squared gradient; without gradients all count the same."""

from __future__ import annotations

import pytest
import torch

from compress.score.fisher_diagonal import FisherDiagonal, FisherSaliency
from compress.score.metric import Elementwise, Kron
from compress.score.statistics import Statistics

SQUARED = torch.rand(6, 9, generator=torch.Generator().manual_seed(0))


def test_an_error_costs_its_squared_gradient() -> None:
    delta = torch.randn(6, 9, generator=torch.Generator().manual_seed(1))
    metric = FisherDiagonal().metric(Statistics(tokens=3, squared_gradient=SQUARED))
    assert isinstance(metric, Elementwise)
    expected = (SQUARED.double() * delta.double().square()).sum()
    assert metric.loss(delta) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("squared", [None, torch.zeros(6, 9)])
def test_without_gradients_every_element_counts_the_same(squared: torch.Tensor | None) -> None:
    statistics = Statistics(tokens=3, squared_gradient=squared)
    delta = torch.randn(6, 9)
    metric = FisherDiagonal().metric(statistics)
    assert isinstance(metric, Kron)
    assert metric.loss(delta) == pytest.approx(float(delta.double().square().sum()), rel=1e-6)
    assert torch.equal(FisherSaliency().importance(delta, statistics, 0), delta.square())


def test_importance_is_what_leaving_out_costs() -> None:
    weight = torch.randn(6, 9, generator=torch.Generator().manual_seed(2))
    statistics = Statistics(tokens=3, squared_gradient=SQUARED)
    importance = FisherSaliency().importance(weight, statistics, 0)
    metric = FisherDiagonal().metric(statistics)
    for place in ((0, 0), (3, 5), (5, 8)):
        delta = torch.zeros(6, 9)
        delta[place] = weight[place]
        assert float(importance[place]) == pytest.approx(metric.loss(delta), rel=1e-5)


def test_both_ask_for_the_same_statistic() -> None:
    assert FisherDiagonal.needs == FisherSaliency.needs == {"squared_gradient"}
