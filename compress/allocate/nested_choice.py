"""Multiple choice with forks: some units exist only under one way of a structure, such as an FFN of fewer neurons.

A fork offers ways, each with units of its own and a loss of its own; a way without units is a part that is left out. Small
trees are solved by dynamic programming over bytes, large ones along convex hulls (:mod:`compress.allocate.multiple_choice`). A
second budget, of predicted seconds, is a price on seconds (Lagrange): the least one that keeps within it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from compress.allocate.choice_tree import Chosen, Fork, Leaf, Node, Way, leaves
from compress.allocate.multiple_choice import (
    BINS,
    CELLS,
    DoesNotFit,
    Option,
    along_hulls,
    fill,
    hull,
    step_of,
)

_HALVINGS = 8
"""Halvings of the interval in which the price of a second lies; it is at most eightfold, so to a hundredth."""


def choose(nodes: Sequence[Node], budget: int, seconds: float | None = None) -> dict[str, str]:
    """Unit → label, of least loss within ``budget`` bytes and, where they are given, predicted ``seconds``.

    Raises:
        DoesNotFit: the smallest of all is over the budget, or the fastest that was found within it is over the seconds.
    """
    free = budget - sum(node.smallest for node in nodes)
    if free < 0:
        raise DoesNotFit(f"{budget - free} bytes at least")
    if seconds is None:
        return _best(nodes, budget).labels
    return _within_seconds(nodes, budget, seconds).labels


def _within_seconds(nodes: Sequence[Node], budget: int, seconds: float) -> Chosen:
    def at(price: float, solve: Callable[[Sequence[Node], int], Chosen] = _greedy) -> Chosen:
        return _unpriced(solve([_priced(node, price) for node in nodes], budget))

    free = _best(nodes, budget)
    if free.total(_seconds) <= seconds:
        return free
    low, high = 0.0, max(1e-12, 0.05 * _loss_of(nodes, free) / free.total(_seconds))
    while (fastest := at(high)).total(_seconds) > seconds:
        low, high = high, high * 8
        if high > 1e18:
            least = fastest.total(_seconds)
            raise DoesNotFit(f"{least} seconds at least")
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high) if low else high / 8
        low, high = (low, middle) if at(middle).total(_seconds) <= seconds else (middle, high)
    within = [one for one in (at(high), at(high, _best)) if one.total(_seconds) <= seconds]
    return min((_filled(one, budget, seconds) for one in within), key=lambda one: _loss_of(nodes, one))


def _best(nodes: Sequence[Node], budget: int) -> Chosen:
    greedy = _greedy(nodes, budget)
    free = budget - sum(node.smallest for node in nodes)
    if BINS * sum(len(leaf.options) for leaf in leaves(nodes)) > CELLS or free == 0:
        return greedy
    exact = _filled(_by_bytes(nodes, free), budget)
    # Losses of ways are not in the picks: the tree is asked for them.
    return min(exact, greedy, key=lambda chosen: _loss_of(nodes, chosen))


def _seconds(option: Option) -> float:
    return option.seconds


def _loss(option: Option) -> float:
    return option.loss


def _loss_of(nodes: Sequence[Node], chosen: Chosen) -> float:
    """The loss of a choice, that of the ways included."""
    names = {leaf.name: leaf.labels for leaf, _ in chosen.picks}

    def of(some: Sequence[Node]) -> float:
        return sum(
            way.loss + of(way.nodes)
            for node in some
            if isinstance(node, Fork)
            for way in node.ways
            if _is_taken(way, names, chosen.fixed)
        )

    return chosen.total(_loss) + of(nodes)


def _is_taken(way: Way, names: Mapping[str, tuple[str, ...]], fixed: Mapping[str, str]) -> bool:
    leaf = next(leaves(way.nodes), None)
    if leaf is not None:
        return names.get(leaf.name) == leaf.labels
    return all(fixed.get(name) == label for name, label in way.fixed.items())


def _priced(node: Node, price: float) -> Node:
    """The node with seconds paid for in loss."""
    if isinstance(node, Leaf):
        options = tuple(replace(one, loss=one.loss + price * one.seconds, true=one) for one in node.options)
        return replace(node, options=options)
    ways = tuple(replace(way, nodes=tuple(_priced(inner, price) for inner in way.nodes)) for way in node.ways)
    return Fork(ways)


def _unpriced(chosen: Chosen) -> Chosen:
    picks = [
        (replace(leaf, options=tuple(one.true or one for one in leaf.options)), index)
        for leaf, index in chosen.picks
    ]
    return Chosen(picks, chosen.fixed)


def _filled(chosen: Chosen, budget: int, seconds: float = math.inf) -> Chosen:
    """Spend what is left of both budgets in single steps of the leaves that are there."""
    items = [leaf.options for leaf, _ in chosen.picks]
    picks = fill(items, [index for _, index in chosen.picks], budget, seconds)
    return Chosen([(leaf, index) for (leaf, _), index in zip(chosen.picks, picks, strict=True)], chosen.fixed)


# Along convex hulls.


@dataclass(frozen=True)
class _Curve:
    """Points of a node by rising bytes and falling loss; ``resolve`` says what is chosen at one of them."""

    points: list[Option]
    resolve: Callable[[int], Chosen]


def _greedy(nodes: Sequence[Node], budget: int) -> Chosen:
    curves = [_curve(node) for node in nodes]
    items = [curve.points for curve in curves]
    smallest = [0] * len(items)
    free = budget - sum(points[0].nbytes for points in items)
    chosen = Chosen()
    for curve, pick in zip(curves, along_hulls(items, smallest, free), strict=True):
        chosen.add(curve.resolve(pick))
    return _filled(chosen, budget)


def _curve(node: Node) -> _Curve:
    if isinstance(node, Leaf):
        own = hull(node.options)
        return _Curve([node.options[i] for i in own], lambda point: Chosen([(node, own[point])]))
    curves = [_way_curve(way) for way in node.ways]
    places = [(number, point) for number, curve in enumerate(curves) for point in range(len(curve.points))]
    points = [curves[number].points[point] for number, point in places]
    own = hull(points)

    def resolve(point: int) -> Chosen:
        number, inner = places[own[point]]
        return curves[number].resolve(inner)

    return _Curve([points[i] for i in own], resolve)


def _way_curve(way: Way) -> _Curve:
    """The points of a way: the steps of its nodes' curves, the best gain for a byte first."""
    curves = [_curve(node) for node in way.nodes]
    steps = sorted(
        (
            -(a.loss - b.loss) / max(1, b.nbytes - a.nbytes),
            number,
            place + 1,
        )
        for number, curve in enumerate(curves)
        for place, (a, b) in enumerate(zip(curve.points, curve.points[1:], strict=False))
    )
    nbytes = sum(curve.points[0].nbytes for curve in curves)
    loss = way.loss + sum(curve.points[0].loss for curve in curves)
    points = [Option(nbytes, loss)]
    for _, number, place in steps:
        before, after = curves[number].points[place - 1 : place + 1]
        nbytes, loss = nbytes + after.nbytes - before.nbytes, loss + after.loss - before.loss
        points.append(Option(nbytes, loss))

    def resolve(point: int) -> Chosen:
        at = [0] * len(curves)
        for _, number, place in steps[:point]:
            at[number] = place
        chosen = Chosen(fixed=dict(way.fixed))
        for curve, place in zip(curves, at, strict=True):
            chosen.add(curve.resolve(place))
        return chosen

    return _Curve(points, resolve)


# Exactly, over bytes.

Totals = NDArray[np.float64]


def _by_bytes(nodes: Sequence[Node], free: int) -> Chosen:
    """Dynamic programming over the bytes beyond the smallest of all; a fork takes, for every number of bytes, its best way."""
    step = step_of(list(_prices(nodes)), free)
    bins = free // step
    least: Totals = np.zeros(bins + 1)
    traces = []
    for node in nodes:
        least, trace = _extended(node, least, step)
        traces.append(trace)
    chosen, left = Chosen(), int(bins)
    for trace in reversed(traces):
        left = trace(left, chosen)
    return chosen


Trace = Callable[[int, Chosen], int]
"""Adds what a node has chosen within so many bins; the bins that are left for the nodes before it."""


def _extended(node: Node, least: Totals, step: int) -> tuple[Totals, Trace]:
    return _extended_leaf(node, least, step) if isinstance(node, Leaf) else _extended_fork(node, least, step)


def _extended_leaf(leaf: Leaf, least: Totals, step: int) -> tuple[Totals, Trace]:
    best = np.full(len(least), np.inf)
    taken: NDArray[np.int16] = np.zeros(len(least), dtype=np.int16)
    prices = [-(-(option.nbytes - leaf.smallest) // step) for option in leaf.options]
    for index, (price, option) in enumerate(zip(prices, leaf.options, strict=True)):
        if price < len(least):
            total = least[: len(least) - price] + option.loss
            better = total < best[price:]
            best[price:][better] = total[better]
            taken[price:][better] = index

    def trace(left: int, chosen: Chosen) -> int:
        index = int(taken[left])
        chosen.picks.append((leaf, index))
        return left - prices[index]

    return best, trace


def _extended_fork(fork: Fork, least: Totals, step: int) -> tuple[Totals, Trace]:
    totals, traces, offsets = [], [], []
    for way in fork.ways:
        offset = min(-(-(way.smallest - fork.smallest) // step), len(least))
        total = np.full(len(least), np.inf)
        total[offset:] = least[: len(least) - offset] + way.loss
        inner = []
        for node in way.nodes:
            total, trace = _extended(node, total, step)
            inner.append(trace)
        totals.append(total)
        traces.append(inner)
        offsets.append(offset)
    stacked = np.stack(totals)
    which = stacked.argmin(0)

    def trace_fork(left: int, chosen: Chosen) -> int:
        number = int(which[left])
        chosen.fixed |= fork.ways[number].fixed
        for trace in reversed(traces[number]):
            left = trace(left, chosen)
        return left - offsets[number]

    return stacked.min(0), trace_fork


def _prices(nodes: Sequence[Node]) -> Iterator[list[int]]:
    """Bytes beyond the smallest, of every leaf's options and of every fork's ways."""
    for node in nodes:
        if isinstance(node, Leaf):
            yield [option.nbytes - node.smallest for option in node.options]
        else:
            yield [way.smallest - node.smallest for way in node.ways]
            for way in node.ways:
                yield from _prices(way.nodes)
