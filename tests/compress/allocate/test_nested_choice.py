"""The multiple-choice knapsack against all combinations."""

from __future__ import annotations

import itertools
import random

import pytest

from compress.allocate import nested_choice as module
from compress.allocate.multiple_choice import DoesNotFit, Option, hull, loss_of, nbytes_of
from compress.allocate.nested_choice import Leaf, choose


def pick(items: list[list[Option]], budget: int) -> list[int]:
    leaves = [
        Leaf(str(number), tuple(map(str, range(len(item)))), tuple(item)) for number, item in enumerate(items)
    ]
    labels = choose(leaves, budget)
    return [int(labels[leaf.name]) for leaf in leaves]


def items_of(seed: int, count: int, options: int, step: int = 1) -> list[list[Option]]:
    draw = random.Random(seed)
    return [
        [Option(step * draw.randint(1, 60), draw.random()) for _ in range(draw.randint(1, options))]
        for _ in range(count)
    ]


def least(items: list[list[Option]], budget: int) -> float:
    return min(
        sum(option.loss for option in chosen)
        for chosen in itertools.product(*items)
        if sum(option.nbytes for option in chosen) <= budget
    )


@pytest.mark.parametrize("seed", range(12))
def test_small_problems_are_solved_exactly(seed: int) -> None:
    items = items_of(seed, count=6, options=4)
    smallest = sum(min(option.nbytes for option in item) for item in items)
    for budget in (smallest, smallest + 7, smallest + 40, 10_000):
        picks = pick(items, budget)
        assert nbytes_of(items, picks) <= budget
        assert loss_of(items, picks) == pytest.approx(least(items, budget))


def test_a_budget_below_the_smallest_options_is_refused() -> None:
    items = [[Option(5, 1.0), Option(3, 2.0)], [Option(4, 0.0)]]
    assert pick(items, 7) == [1, 0]
    with pytest.raises(DoesNotFit, match="7 bytes"):
        pick(items, 6)


def test_bytes_too_many_for_single_bins_are_rounded_so_that_the_result_fits() -> None:
    items = items_of(3, count=40, options=5, step=1)
    items = [[Option(option.nbytes * 99_991 + 13, option.loss) for option in item] for item in items]
    budget = sum(max(option.nbytes for option in item) for item in items) // 2
    picks = pick(items, budget)
    assert 0.98 * budget < nbytes_of(items, picks) <= budget


def test_large_problems_are_near_the_relaxation(monkeypatch: pytest.MonkeyPatch) -> None:
    items = items_of(5, count=300, options=5)
    budget = 300 * 20
    exact = loss_of(items, pick(items, budget))
    monkeypatch.setattr(module, "CELLS", 0)
    greedy = pick(items, budget)
    assert nbytes_of(items, greedy) <= budget
    assert exact <= loss_of(items, greedy) <= exact + max(option.loss for item in items for option in item)


def test_the_hull_leaves_out_what_no_byte_pays_for() -> None:
    item = [Option(10, 1.0), Option(20, 0.9), Option(30, 0.1), Option(40, 0.2), Option(50, 0.0)]
    assert hull(item) == [0, 2, 4]
