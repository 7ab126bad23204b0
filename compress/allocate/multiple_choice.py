"""Multiple-choice knapsack: one option for every item, of least loss together within a budget of bytes.

Small problems are solved by dynamic programming over bytes, large ones along the convex hulls of the options (the greedy
solution of the linear relaxation, Sinha and Zoltners 1979), whose loss is above the optimum by less than one step of one item.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BINS = 1 << 15
"""Steps into which the free bytes are divided by the dynamic programming."""
_CELLS = 1 << 29
"""Bins times options, over all items, up to which the programme runs: about a second."""


@dataclass(frozen=True)
class Option:
    """One option of an item: its bytes and its loss."""

    nbytes: int
    loss: float


Item = Sequence[Option]
Picks = list[int]
"""For each item the index of its option."""


class DoesNotFit(ValueError):
    """Even the smallest options of all items are over the budget."""


def pick(items: Sequence[Item], budget: int) -> Picks:
    """The options of least total loss whose bytes are within ``budget``.

    Raises:
        DoesNotFit: there are none.
    """
    smallest = [min(range(len(item)), key=lambda i: (item[i].nbytes, item[i].loss)) for item in items]
    free = budget - nbytes_of(items, smallest)
    if free < 0:
        raise DoesNotFit(f"{nbytes_of(items, smallest)} bytes at least")
    greedy = _fill(items, _along_hulls(items, smallest, free), budget)
    if _BINS * sum(len(item) for item in items) > _CELLS or free == 0:
        return greedy
    exact = _fill(items, _by_bytes(items, smallest, free), budget)
    return min(exact, greedy, key=lambda picks: loss_of(items, picks))


def nbytes_of(items: Sequence[Item], picks: Picks) -> int:
    """Bytes of the picked options."""
    return sum(item[i].nbytes for item, i in zip(items, picks, strict=True))


def loss_of(items: Sequence[Item], picks: Picks) -> float:
    """The sum of the picked options' losses."""
    return sum(item[i].loss for item, i in zip(items, picks, strict=True))


def hull(item: Item) -> list[int]:
    """Indices of the options on the lower convex hull of (bytes, loss), by rising bytes and falling loss."""
    kept: list[int] = []
    for index in sorted(range(len(item)), key=lambda i: (item[i].nbytes, item[i].loss)):
        if kept and item[index].loss >= item[kept[-1]].loss:
            continue
        while len(kept) > 1 and _gain(item, kept[-2], index) >= _gain(item, kept[-2], kept[-1]):
            kept.pop()
        kept.append(index)
    return kept


def _gain(item: Item, before: int, after: int) -> float:
    """Loss that a byte saves on the way from one option to a larger one."""
    return (item[before].loss - item[after].loss) / max(1, item[after].nbytes - item[before].nbytes)


def _along_hulls(items: Sequence[Item], smallest: Picks, free: int) -> Picks:
    picks = list(smallest)
    hulls = [hull(item) for item in items]
    queue = [
        (-_gain(item, own[0], own[1]), number, 1)
        for number, (item, own) in enumerate(zip(items, hulls, strict=True))
        if len(own) > 1
    ]
    heapq.heapify(queue)
    while queue:
        _, number, place = heapq.heappop(queue)
        item, own = items[number], hulls[number]
        price = item[own[place]].nbytes - item[picks[number]].nbytes
        if price > free:
            continue
        picks[number], free = own[place], free - price
        if place + 1 < len(own):
            heapq.heappush(queue, (-_gain(item, own[place], own[place + 1]), number, place + 1))
    return picks


def _by_bytes(items: Sequence[Item], smallest: Picks, free: int) -> Picks:
    """Dynamic programming over the bytes beyond the smallest options, in steps that are rounded up, so that the result fits.

    Where all prices are multiples of the step the result is the optimum.
    """
    prices = [
        [option.nbytes - item[s].nbytes for option in item] for item, s in zip(items, smallest, strict=True)
    ]
    step = _step(prices, free)
    bins = free // step
    least: NDArray[np.float64] = np.zeros(bins + 1)
    chosen: NDArray[np.int16] = np.zeros((len(items), bins + 1), dtype=np.int16)
    for number, item in enumerate(items):
        best = np.full(bins + 1, np.inf)
        for index, option in enumerate(item):
            price = -(-prices[number][index] // step)
            if price > bins:
                continue
            total = least[: bins + 1 - price] + option.loss
            better = total < best[price:]
            best[price:][better] = total[better]
            chosen[number, price:][better] = index
        least = best
    picks, left = [0] * len(items), int(bins)
    for number in range(len(items) - 1, -1, -1):
        picks[number] = int(chosen[number, left])
        left -= -(-prices[number][picks[number]] // step)
    return picks


def _step(prices: Sequence[Sequence[int]], free: int) -> int:
    """Bytes of a bin: the greatest common divisor of all prices where that makes few enough bins."""
    common = int(np.gcd.reduce([price for item in prices for price in item if price > 0] or [1]))
    return common if free // common <= _BINS else -(-free // _BINS)


def _fill(items: Sequence[Item], picks: Picks, budget: int) -> Picks:
    """Spend what is left in single steps, the best gain for a byte first, as long as there are any."""
    picks, left = list(picks), budget - nbytes_of(items, picks)
    while left > 0:
        steps = sorted(
            (
                -(item[picks[number]].loss - option.loss)
                / max(1, option.nbytes - item[picks[number]].nbytes),
                number,
                index,
            )
            for number, item in enumerate(items)
            for index, option in enumerate(item)
            if option.loss < item[picks[number]].loss and option.nbytes - item[picks[number]].nbytes <= left
        )
        if not steps:
            break
        moved: set[int] = set()
        for _, number, index in steps:
            price = items[number][index].nbytes - items[number][picks[number]].nbytes
            if number not in moved and price <= left:
                picks[number], left = index, left - price
                moved.add(number)
    return picks
