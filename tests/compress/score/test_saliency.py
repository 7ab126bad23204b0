"""Saliencies and the Fisher diagonal."""

from __future__ import annotations

import pytest
import torch

from compress.metric import Elementwise, Kron
from compress.registry import SALIENCIES, find
from compress.score.fisher_diagonal import FisherDiagonal
from compress.statistics import Statistics

WEIGHT = torch.tensor([[1.0, -2.0], [3.0, 0.5]])


@pytest.mark.parametrize("name", SALIENCIES)
def test_nothing_seen_still_gives_an_importance(name: str) -> None:
    found = find("saliency", name)().importance(WEIGHT, Statistics(), 0)
    assert found.shape == WEIGHT.shape
    assert bool((found >= 0).all())


def test_wanda_squares_weight_times_norm() -> None:
    seen = Statistics(tokens=4, diagonal=torch.tensor([4.0, 1.0]))
    found = find("saliency", "wanda")().importance(WEIGHT, seen, 0)
    assert torch.equal(found, torch.tensor([[4.0, 4.0], [36.0, 0.25]]))


def test_fisher_is_what_leaving_out_costs() -> None:
    seen = Statistics(tokens=4, squared_gradient=torch.tensor([[1.0, 2.0], [0.0, 4.0]]))
    found = find("saliency", "fisher")().importance(WEIGHT, seen, 0)
    metric = FisherDiagonal().metric(seen)
    assert isinstance(metric, Elementwise)
    for i in range(2):
        for j in range(2):
            delta = torch.zeros(2, 2)
            delta[i, j] = WEIGHT[i, j]
            assert float(found[i, j]) == pytest.approx(metric.loss(delta))


def test_no_gradient_means_that_all_count_the_same() -> None:
    assert FisherDiagonal().metric(Statistics(tokens=1, squared_gradient=torch.zeros(2, 2))) == Kron()
