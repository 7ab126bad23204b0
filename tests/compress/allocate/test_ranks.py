"""Ranks by layer: within the budget, and better than uniform ones by the measure that they are chosen by."""

from __future__ import annotations

import itertools

import pytest
import torch

from compress.allocate.ranks import Spectrum, allocate
from compress.structures.factors import Factors


def spectra(ratio: float = 0.6) -> dict[str, Spectrum]:
    shapes = {"steep": (64, 96), "flat": (96, 64), "wide": (64, 256), "small": (32, 32)}
    decays = {"steep": 0.8, "flat": 0.995, "wide": 0.95, "small": 0.9}
    return {
        name: Spectrum(shape, decays[name] ** torch.arange(min(shape)), Factors(ratio).rank_of(shape))
        for name, shape in shapes.items()
    }


def cost(found: dict[str, Spectrum], ranks: dict[str, int | None]) -> int:
    return sum(
        s.shape[0] * s.shape[1] if ranks[name] is None else (ranks[name] or 0) * s.unit
        for name, s in found.items()
    )


def losses(found: dict[str, Spectrum], ranks: dict[str, int | None]) -> dict[str, float]:
    return {
        name: 0.0 if (rank := ranks[name]) is None else float(s.tails()[rank]) for name, s in found.items()
    }


@pytest.mark.parametrize("rule", ["energy", "truncation", "fisher"])
@pytest.mark.parametrize("ratio", [0.4, 0.6, 0.8])
def test_budget_and_multiples(rule: str, ratio: float) -> None:
    found = spectra(ratio)
    ranks = allocate(found, rule)
    assert set(ranks) == set(found)
    assert cost(found, ranks) <= sum(s.uniform * s.unit for s in found.values())
    for name, rank in ranks.items():
        assert rank is None or (rank % 8 == 0 and 8 <= rank <= found[name].cap)


@pytest.mark.parametrize("ratio", [0.4, 0.6, 0.8])
def test_least_loss(ratio: float) -> None:
    found = spectra(ratio)
    uniform: dict[str, int | None] = {name: s.uniform for name, s in found.items()}
    chosen = allocate(found, "fisher")
    assert sum(losses(found, chosen).values()) < sum(losses(found, uniform).values())


def test_near_the_best_of_all() -> None:
    found = {name: spectrum for name, spectrum in spectra().items() if name != "wide"}
    budget = sum(s.uniform * s.unit for s in found.values())
    choices = [[None, *range(8, s.cap + 1, 8)] for s in found.values()]
    every = (dict(zip(found, ranks, strict=True)) for ranks in itertools.product(*choices))
    best = min(sum(losses(found, ranks).values()) for ranks in every if cost(found, ranks) <= budget)
    assert sum(losses(found, allocate(found, "fisher")).values()) <= 1.2 * best


def test_energy_loses_equal_shares() -> None:
    found = spectra()
    ranks = allocate(found, "energy")
    for name, spectrum in found.items():
        rank = ranks[name]
        assert rank is not None
        tails = spectrum.tails() / spectrum.tails()[0]
        others = [
            float(s.tails()[r] / s.tails()[0]) for n, s in found.items() if n != name and (r := ranks[n])
        ]
        # A multiple of eight less would lose more than the others do, or the rank is at its end.
        assert rank == 8 or rank == spectrum.cap or float(tails[rank - 8]) >= min(others)
