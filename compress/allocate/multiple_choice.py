"""Parts of a multiple-choice knapsack (one option for every item, of least loss together within a budget of bytes).

Here: options, steps along the convex hulls of their bytes and losses (the greedy solution of the linear relaxation, Sinha and
Zoltners 1979, whose loss is above the optimum by less than one step of one item), and spending what is left. The search itself
is :mod:`compress.allocate.nested_choice`.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 1 << 15
"""Steps into which the free bytes are divided by the dynamic programming."""
CELLS = 1 << 29
"""Bins times options, over all items, up to which the programme runs: about a second."""


@dataclass(frozen=True)
class Option:
    """One option of an item.

    Attributes:
        nbytes: its bytes.
        loss: what it costs.
        seconds: that it takes in a decoding step, predicted.
        true: the option itself, where this one's loss has a price of its seconds in it.
    """

    nbytes: int
    loss: float
    seconds: float = 0.0
    true: Option | None = None


Item = Sequence[Option]
Picks = list[int]
"""For each item the index of its option."""


class DoesNotFit(ValueError):
    """Even the smallest options of all items are over the budget."""


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


def along_hulls(items: Sequence[Item], smallest: Picks, free: int) -> Picks:
    """Steps along the convex hulls from the ``smallest`` options, the best gain for a byte first, as long as ``free`` lasts."""
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


def step_of(prices: Sequence[Sequence[int]], free: int) -> int:
    """Bytes of a bin: the greatest common divisor of all prices where that makes few enough bins."""
    common = int(np.gcd.reduce([price for item in prices for price in item if price > 0] or [1]))
    return common if free // common <= BINS else -(-free // BINS)


def fill(items: Sequence[Item], picks: Picks, budget: int, seconds: float = math.inf) -> Picks:
    """Spend what is left in single steps, the best gain for a byte first, as long as there are any.

    Args:
        items: with their options.
        picks: of them, within both budgets.
        budget: bytes.
        seconds: that the options may take together.
    """
    picks, left = list(picks), budget - nbytes_of(items, picks)
    rest = seconds - sum(item[i].seconds for item, i in zip(items, picks, strict=True))
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
            if option.loss < item[picks[number]].loss
            and option.nbytes - item[picks[number]].nbytes <= left
            and option.seconds - item[picks[number]].seconds <= rest
        )
        if not steps:
            break
        moved: set[int] = set()
        for _, number, index in steps:
            before, after = items[number][picks[number]], items[number][index]
            price, slower = after.nbytes - before.nbytes, after.seconds - before.seconds
            if number not in moved and price <= left and slower <= rest:
                picks[number], left, rest = index, left - price, rest - slower
                moved.add(number)
    return picks
