"""Saliencies and the Fisher diagonal."""

from __future__ import annotations

import pytest
import torch

from compress.calibrate.accumulate import Accumulator
from compress.recipe.registry import SALIENCIES, find
from compress.score.fisher_diagonal import FisherDiagonal
from compress.score.metric import Elementwise, Kron
from compress.score.saliency import RelativeSaliency
from compress.score.statistics import Statistics

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


def test_relative_importance_is_the_mean_and_spread_of_shares() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(6, 10, generator=generator), torch.randn(50, 10, generator=generator)
    inputs[:, 3], inputs[7] = 0, 0
    shares = weight.abs() * inputs.abs().unsqueeze(1)
    shares = torch.nan_to_num(shares / shares.sum(-1, keepdim=True))
    wanted = shares.mean(0) + 0.5 * shares.std(0, unbiased=False)
    found = RelativeSaliency(spread=0.5).importance(weight, Statistics(tokens=50, sample=inputs), 0)
    assert torch.allclose(found.sqrt(), wanted, atol=1e-5)
    unseen = RelativeSaliency().importance(weight, Statistics(), 0)
    assert torch.equal(unseen, weight.square())


def test_a_sample_is_evenly_spaced_and_bounded() -> None:
    inputs = torch.arange(5000.0).unsqueeze(1)
    seen = Accumulator(frozenset({"sample"}), 1)
    for batch in inputs.split(700):
        seen.add(batch)
    sample = seen.finish().sample
    assert sample is not None
    assert torch.equal(sample, inputs[::8])
