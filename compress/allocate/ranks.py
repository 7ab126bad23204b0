"""Ranks by layer: one budget of parameters spread over the weights by what their spectra say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from compress.structures.base import Shape
from compress.structures.factors import MULTIPLE


@dataclass(frozen=True)
class Spectrum:
    """What is known of a weight before its rank is chosen.

    Attributes:
        shape: ``(out, in)``.
        values: singular values in the metric, falling, ``[min(out, in)]``.
        uniform: the rank that the recipe's ratio alone would give it.
    """

    shape: Shape
    values: Tensor
    uniform: int

    @property
    def unit(self) -> int:
        """Parameters that one rank takes."""
        return self.shape[0] + self.shape[1]

    @property
    def cap(self) -> int:
        """The highest rank whose factors are smaller than the weight, a multiple of 8 where that leaves any."""
        highest = (self.shape[0] * self.shape[1] - 1) // self.unit
        return highest // MULTIPLE * MULTIPLE or highest

    def tails(self) -> Tensor:
        """Loss at rank r, fp64 ``[min(out, in) + 1]``: the energy of what is cut off."""
        energy = self.values.double().square()
        return torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)])


def allocate(spectra: Mapping[str, Spectrum], rule: str) -> dict[str, int | None]:
    """Rank by weight, ``None`` for one that is better kept whole, within the parameters that uniform ranks take.

    ``rule`` is one of

    - ``energy``: every weight loses the same share of its own energy, as nearly as multiples of 8 allow;
    - ``truncation``: the sum of these shares is least (the theoretical truncation loss that SVD-LLM v2,
      arXiv:2503.12340, section 3.2, weighs its layers by);
    - ``fisher``: the sum of the losses themselves is least, for spectra in the Fisher metric, where the loss of any layer is
      one of the model's, in nats.
    """
    if rule == "energy":
        return dict(_equal_shares(spectra))
    relative = rule == "truncation"
    # Steps are long where weights are few or small; what ought to be the worse way can then come out ahead.
    found = [_least_sum(spectra, relative=relative, whole=whole) for whole in (True, False)]
    uniform: dict[str, int | None] = {name: spectrum.uniform for name, spectrum in spectra.items()}
    return min([*found, uniform], key=lambda ranks: _lost(spectra, ranks, relative))


def _lost(spectra: Mapping[str, Spectrum], ranks: Mapping[str, int | None], relative: bool) -> float:
    """The sum of the losses, and infinity over the budget."""
    total, cost = 0.0, 0
    for name, spectrum in spectra.items():
        tails, rank = spectrum.tails(), ranks[name]
        cost += spectrum.shape[0] * spectrum.shape[1] if rank is None else rank * spectrum.unit
        scale = float(tails[0]) if relative and float(tails[0]) > 0 else 1.0
        total += 0.0 if rank is None else float(tails[rank]) / scale
    return total if cost <= _budget(spectra) else float("inf")


def _budget(spectra: Mapping[str, Spectrum]) -> int:
    return sum(spectrum.uniform * spectrum.unit for spectrum in spectra.values())


def _least_sum(spectra: Mapping[str, Spectrum], *, relative: bool, whole: bool) -> dict[str, int | None]:
    """Steps of the lower convex hulls of (parameters, loss), best gain for its price first.

    Whole is a point of a hull too: it costs hardly more than the highest rank and loses nothing.
    """
    chosen: dict[str, int | None] = {}
    left = _budget(spectra)
    steps: list[tuple[float, str, int, int | None, int]] = []
    for name, spectrum in spectra.items():
        points = _points(spectrum, relative)
        points = points if whole or len(points) == 1 else points[:-1]
        chosen[name] = points[0][2]
        left -= points[0][0]
        hull = _hull(points)
        for order, (before, after) in enumerate(pairwise(hull)):
            gain = (before[1] - after[1]) / (after[0] - before[0])
            steps.append((-gain, name, order, after[2], after[0] - before[0]))
    stopped: set[str] = set()
    for _, name, _, rank, price in sorted(steps, key=lambda step: step[:3]):
        # The steps of one weight build on each other: where one is too dear, what follows is too.
        if name in stopped or price > left:
            stopped.add(name)
            continue
        chosen[name] = rank
        left -= price
    return _filled(spectra, chosen, left, relative)


def _filled(
    spectra: Mapping[str, Spectrum], chosen: dict[str, int | None], left: int, relative: bool
) -> dict[str, int | None]:
    """Spend what is left in single steps: the steps of a hull may be long ones, which the rest did not pay for."""
    tails = {name: spectrum.tails() for name, spectrum in spectra.items()}
    if relative:
        tails = {name: tail / tail[0].clamp_min(1e-300) for name, tail in tails.items()}
    while True:
        best: tuple[float, str, int] | None = None
        for name, rank in chosen.items():
            spectrum = spectra[name]
            if rank is None or rank + MULTIPLE > spectrum.cap or MULTIPLE * spectrum.unit > left:
                continue
            gain = float(tails[name][rank] - tails[name][rank + MULTIPLE]) / spectrum.unit
            if best is None or gain > best[0]:
                best = (gain, name, rank + MULTIPLE)
        if best is None:
            return chosen
        chosen[best[1]] = best[2]
        left -= MULTIPLE * spectra[best[1]].unit


Point = tuple[int, float, int | None]
"""Parameters, loss, rank."""


def _points(spectrum: Spectrum, relative: bool) -> list[Point]:
    tails = spectrum.tails()
    whole = float(tails[0])
    if relative and whole > 0:
        tails = tails / whole
    step = MULTIPLE if spectrum.cap >= MULTIPLE else 1
    ranked: list[Point] = [
        (r * spectrum.unit, float(tails[r]), r) for r in range(step, spectrum.cap + 1, step)
    ]
    return [*ranked, (spectrum.shape[0] * spectrum.shape[1], 0.0, None)]


def _hull(points: list[Point]) -> list[Point]:
    """The points from which loss falls ever more slowly: their lower convex hull, by rising cost."""
    hull: list[Point] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], point) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    return hull


def _slope(a: Point, b: Point) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


def _equal_shares(spectra: Mapping[str, Spectrum]) -> dict[str, int]:
    """The smallest share such that all weights cut to it fit the budget, found by bisection."""
    budget = _budget(spectra)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        cost = sum(_rank_at(spectrum, middle) * spectrum.unit for spectrum in spectra.values())
        low, high = (low, middle) if cost <= budget else (middle, high)
    return {name: _rank_at(spectrum, high) for name, spectrum in spectra.items()}


def _rank_at(spectrum: Spectrum, share: float) -> int:
    """The least multiple of 8 at which no more than ``share`` of the energy is lost."""
    tails = spectrum.tails()
    step = MULTIPLE if spectrum.cap >= MULTIPLE else 1
    needed = int((tails > share * float(tails[0])).sum())
    return min(max(step, -(-needed // step) * step), spectrum.cap)
