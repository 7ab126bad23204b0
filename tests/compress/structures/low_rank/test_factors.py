"""Low-rank factors: ranks under a budget, storage, and their bytes."""

from __future__ import annotations

import json

import pytest
import torch
from compress_kernels.layouts import check, layout_from_json, nbytes
from torch import Tensor

from compress.linalg.weighted_svd import decompose, refit_right
from compress.score.metric import Kron, Metric, Side
from compress.structures.base import StaysDense
from compress.structures.choices import Choice
from compress.structures.grids.integer import IntegerGrid
from compress.structures.low_rank.factors import SHOWN, Factors, Storage, spectrum


def spd(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(size, 2 * size, generator=generator)
    return factor @ factor.T / size


def weight_of(shape: tuple[int, int]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize(
    ("shape", "ratio", "rank"),
    [
        ((384, 384), 0.8, 152),
        ((128, 384), 0.8, 72),
        ((1024, 384), 0.6, 160),
        ((4096, 4096), 0.5, 1024),
        ((16, 16), 0.5, 4),
    ],
)
def test_ranks_round_down_under_the_budget(shape: tuple[int, int], ratio: float, rank: int) -> None:
    factors = Factors(ratio)
    assert factors.rank_of(shape) == rank
    assert rank * sum(shape) <= ratio * shape[0] * shape[1]
    assert nbytes(factors.layout(shape), shape) == 2 * rank * sum(shape)


def test_what_would_not_be_smaller_stays_dense() -> None:
    with pytest.raises(StaysDense, match="would take"):
        Factors(rank=48).layout((64, 64))
    with pytest.raises(StaysDense, match="leaves no rank"):
        Factors(0.01).layout((8, 8))


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="exceeds its smaller side"):
        Factors(rank=65).layout((64, 128))
    with pytest.raises(ValueError, match="at least 1"):
        Factors(rank=0)
    for ratio in (0.0, -1.0, 1.5):
        with pytest.raises(ValueError, match="above 0 and up to 1"):
            Factors(ratio)
    with pytest.raises(ValueError, match="either a ratio or a rank"):
        Factors()


def structures() -> dict[str, Factors]:
    return {
        "bf16": Factors(0.5),
        "fp32": Factors(0.5, storage=Storage(torch.float32)),
        "on a grid": Factors(0.5, storage=Storage(grid=IntegerGrid(8, "channel"))),
        "grouped": Factors(0.5, storage=Storage(grid=IntegerGrid(4, 16))),
    }


@pytest.mark.parametrize("name", list(structures()))
def test_encoding_is_exact(name: str) -> None:
    structure, shape = structures()[name], (48, 64)
    weight = weight_of(shape)
    metric: Metric = Kron(right=Side(spd(64, 2)))
    before = weight.clone()
    parameters = structure.fit(weight, metric)
    theta = structure.project(weight, parameters)
    packed = structure.encode(theta, parameters)
    assert torch.equal(weight, before)
    assert packed.layout == structure.layout(shape)
    check(packed.layout, packed.tensors, shape)
    assert layout_from_json(json.loads(json.dumps(packed.layout.to_json()))) == packed.layout
    assert sum(tensor.nbytes for tensor in packed.tensors.values()) == nbytes(packed.layout, shape)
    torch.testing.assert_close(packed.dense(torch.float32), theta, rtol=0, atol=1e-6)


def test_the_right_factor_is_fitted_to_the_left_one_as_stored() -> None:
    weight, metric = weight_of((48, 64)), Kron(right=Side(spd(64, 2)))
    coarse = Factors(rank=8, storage=Storage(grid=IntegerGrid(3, "channel")))
    parameters = coarse.fit(weight, metric)
    parts = decompose(weight, metric)
    left = parameters.left.values
    torch.testing.assert_close(left, coarse.storage.store(parts.left[:, :8]).values, rtol=0.3, atol=0.3)
    free = refit_right(weight, left, metric)
    fitted = metric.loss(weight - left @ free.float())
    as_truncated = metric.loss(weight - left @ parts.right[:8].float())
    assert fitted < as_truncated
    stored = coarse.storage.store(free, Kron(right=metric.right))
    torch.testing.assert_close(parameters.right.values, stored.values, rtol=0, atol=1e-5)
    assert metric.loss(weight - parameters.dense) < 1.3 * fitted


def test_a_shared_right_factor_is_stored_alike_and_the_left_one_fits_it() -> None:
    weight, metric = weight_of((48, 64)), Kron(right=Side(spd(64, 2)))
    right = decompose(weight, metric).right[:8].float()
    factors = Factors(rank=8, storage=Storage(torch.float32), shared=True)
    parameters = factors.under(weight, right, metric, torch.ones(48))
    assert torch.equal(parameters.right.values, right)
    delta = (weight - parameters.dense).double()
    gradient = delta @ spd(64, 2).double() @ right.double().T
    assert float(gradient.abs().max()) < 1e-3
    assert Factors(rank=60, shared=True).rank_of((48, 64)) == 60


def test_chosen_ranks_stand_alone() -> None:
    inside = Factors(0.5, inside=True)
    assert inside.chosen(Choice(8)) == Factors(rank=8)
    assert inside.chosen(Choice(8, shared="q")) == Factors(rank=8, shared=True)


def test_the_spectrum_of_a_report_is_thinned_out() -> None:
    values = torch.linspace(10, 1, 200)
    figures = spectrum(values, 50)
    shown = [float(word) for word in str(figures["spectrum"]).split()]
    assert len(shown) <= SHOWN
    assert shown[0] == 1
    assert figures["lost"] == pytest.approx(float(values[50:].square().sum() / values.square().sum()))
    assert spectrum(torch.zeros(4), 1)["lost"] == 0.0
