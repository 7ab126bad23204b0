"""Ranks by layer, and what goes with them: one budget of bytes spread over the weights by what each choice loses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from compress.structures.choices import Choice, Option

Choices = dict[str, Choice | None]


@dataclass(frozen=True)
class Curve:
    """What is known of a weight before its rank is chosen.

    Attributes:
        options: by rising bytes, each losing less than the one before; see :func:`curve`.
        uniform: bytes that the recipe's ratio alone would give it.
        whole: bytes of the dense weight.
        total: what losing all of the weight costs, in the unit of the options' losses.
        stays: whether it may be kept whole.
    """

    options: tuple[Option, ...]
    uniform: int
    whole: int
    total: float
    stays: bool = True

    def find(self, choice: Choice | None) -> Option | None:
        """The option of a choice; ``None`` for a weight kept whole."""
        return None if choice is None else next(one for one in self.options if one.choice == choice)


def curve(options: Iterable[Option], *, uniform: int, whole: int, total: float, stays: bool = True) -> Curve:
    """The options worth having: those that lose less than any cheaper one.

    Raises:
        ValueError: there is none.
    """
    kept: list[Option] = []
    for option in sorted(options, key=lambda one: (one.nbytes, one.loss)):
        if option.nbytes < whole and (not kept or option.loss < kept[-1].loss):
            kept.append(option)
    if not kept:
        raise ValueError("no option makes the weight smaller")
    return Curve(tuple(kept), uniform, whole, total, stays)


def allocate(curves: Mapping[str, Curve], rule: str) -> Choices:
    """Choice by weight, ``None`` for one that is better kept whole, within the bytes that uniform ranks take.

    ``rule`` is one of

    - ``split``: every weight keeps its own bytes, and takes of them what loses least;
    - ``energy``: every weight loses the same share of its own energy, as nearly as multiples of 8 allow;
    - ``truncation``: the sum of these shares is least (the theoretical truncation loss that SVD-LLM v2,
      arXiv:2503.12340, section 3.2, weighs its layers by), for losses that are told as shares;
    - ``fisher``: the sum of the losses is least, for losses in the Fisher metric, where that of any layer is one of the
      model's, in nats.
    """
    if rule == "split":
        return _split(curves)
    if rule == "energy":
        return dict(_equal_shares(curves))
    # Steps are long where weights are few or small; what ought to be the worse way can then come out ahead.
    found = [_least_sum(curves, whole=whole) for whole in (True, False)]
    return min([*found, _split(curves)], key=lambda choices: _lost(curves, choices))


def _split(curves: Mapping[str, Curve]) -> Choices:
    return {
        name: max(
            (option for option in one.options if option.nbytes <= one.uniform),
            key=lambda option: option.nbytes,
            default=one.options[0],
        ).choice
        for name, one in curves.items()
    }


def _loss(one: Curve, choice: Choice | None) -> float:
    return 0.0 if (option := one.find(choice)) is None else option.loss


def _lost(curves: Mapping[str, Curve], choices: Choices) -> float:
    """The sum of the losses, and infinity over the budget."""
    cost = sum(
        one.whole if (option := one.find(choices[name])) is None else option.nbytes
        for name, one in curves.items()
    )
    return (
        sum(_loss(one, choices[name]) for name, one in curves.items())
        if cost <= _budget(curves)
        else float("inf")
    )


def _budget(curves: Mapping[str, Curve]) -> int:
    return sum(one.uniform for one in curves.values())


@dataclass(frozen=True)
class _Point:
    nbytes: int
    loss: float
    choice: Choice | None


def _least_sum(curves: Mapping[str, Curve], *, whole: bool) -> Choices:
    """Steps of the lower convex hulls of (bytes, loss), best gain for its price first.

    Whole is a point of a hull too: it costs hardly more than the highest rank and loses nothing.
    """
    points = {name: _points(one, whole) for name, one in curves.items()}
    chosen = {name: own[0] for name, own in points.items()}
    left = _budget(curves) - sum(point.nbytes for point in chosen.values())
    steps = [
        (_slope(before, after), name, order, after)
        for name, own in points.items()
        for order, (before, after) in enumerate(pairwise(_hull(own)))
    ]
    stopped: set[str] = set()
    for _, name, _, after in sorted(steps, key=lambda step: step[:3]):
        price = after.nbytes - chosen[name].nbytes
        # The steps of one weight build on each other: where one is too dear, what follows is too.
        if name in stopped or price > left:
            stopped.add(name)
            continue
        chosen[name] = after
        left -= price
    _fill(points, chosen, left)
    return {name: point.choice for name, point in chosen.items()}


def _points(one: Curve, whole: bool) -> list[_Point]:
    found = [_Point(option.nbytes, option.loss, option.choice) for option in one.options]
    return [*found, _Point(one.whole, 0.0, None)] if whole and one.stays else found


def _fill(points: Mapping[str, list[_Point]], chosen: dict[str, _Point], left: int) -> None:
    """Spend what is left in single steps: the steps of a hull may be long ones, which the rest did not pay for."""
    places = {name: points[name].index(point) for name, point in chosen.items()}
    while True:
        best: tuple[float, str] | None = None
        for name, place in places.items():
            if place + 1 == len(points[name]) or points[name][place + 1].nbytes - chosen[name].nbytes > left:
                continue
            slope = _slope(chosen[name], points[name][place + 1])
            if best is None or slope < best[0]:
                best = (slope, name)
        if best is None:
            return
        name = best[1]
        places[name] += 1
        left -= points[name][places[name]].nbytes - chosen[name].nbytes
        chosen[name] = points[name][places[name]]


def _hull(points: list[_Point]) -> list[_Point]:
    """The points from which loss falls ever more slowly: their lower convex hull, by rising cost."""
    hull: list[_Point] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], point) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    return hull


def _slope(a: _Point, b: _Point) -> float:
    return (b.loss - a.loss) / (b.nbytes - a.nbytes)


def _equal_shares(curves: Mapping[str, Curve]) -> Choices:
    """The smallest share such that all weights cut to it fit the budget, found by bisection."""
    budget = _budget(curves)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        cost = sum(_at(one, middle).nbytes for one in curves.values())
        low, high = (low, middle) if cost <= budget else (middle, high)
    return {name: _at(one, high).choice for name, one in curves.items()}


def _at(one: Curve, share: float) -> Option:
    """The cheapest option at which no more than ``share`` of the energy is lost, or else the best there is."""
    return next((option for option in one.options if option.loss <= share * one.total), one.options[-1])
