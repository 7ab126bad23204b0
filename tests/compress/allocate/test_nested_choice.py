"""The multiple-choice knapsack against all combinations."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import pytest

from compress.allocate import nested_choice as module
from compress.allocate.choice_tree import Fork, Leaf, Node, Way
from compress.allocate.multiple_choice import DoesNotFit, Option, hull, loss_of, nbytes_of
from compress.allocate.nested_choice import choose


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


def leaf(name: str, draw: random.Random, count: int = 3) -> Leaf:
    options = tuple(Option(draw.randint(1, 30), draw.random(), draw.randint(1, 9)) for _ in range(count))
    return Leaf(name, tuple(f"{name}{index}" for index in range(count)), options)


def tree(seed: int) -> list[Node]:
    """Two leaves, an FFN that may be narrow, and a block with another that may be left out."""
    draw = random.Random(seed)

    def ffn(name: str) -> Fork:
        ways = (tuple(leaf(f"{name}{number}", draw) for number in range(2)) for _ in range(2))
        return Fork(tuple(Way(nodes, 0.1 * number) for number, nodes in enumerate(ways)))

    gone = Way(loss=draw.uniform(0.5, 3), fixed={"c": "gone", "d0": "gone", "d1": "gone"})
    return [leaf("a", draw), ffn("b"), Fork((Way((leaf("c", draw), ffn("d"))), gone)), leaf("e", draw)]


def all_ways(nodes: Sequence[Node]) -> Iterator[tuple[int, float, float]]:
    """Bytes, loss and seconds of everything that can be chosen."""
    if not nodes:
        yield 0, 0.0, 0.0
        return
    first, rest = nodes[0], list(all_ways(nodes[1:]))
    own = (
        [(one.nbytes, one.loss, one.seconds) for one in first.options]
        if isinstance(first, Leaf)
        else [(size, way.loss + loss, s) for way in first.ways for size, loss, s in all_ways(way.nodes)]
    )
    yield from ((a + b, c + d, e + f) for a, c, e in own for b, d, f in rest)


def figures(nodes: Sequence[Node], labels: dict[str, str]) -> tuple[int, float, float]:
    """Bytes, loss and seconds of a choice."""
    total = (0, 0.0, 0.0)
    for node in nodes:
        if isinstance(node, Leaf):
            one = node.options[node.labels.index(labels[node.name])]
            part = (one.nbytes, one.loss, one.seconds)
        else:
            (way,) = (way for way in node.ways if taken(way, labels))
            inner = figures(way.nodes, labels)
            part = (inner[0], inner[1] + way.loss, inner[2])
        total = (total[0] + part[0], total[1] + part[1], total[2] + part[2])
    return total


def taken(way: Way, labels: dict[str, str]) -> bool:
    if way.fixed:
        return all(labels[name] == label for name, label in way.fixed.items())
    first = way.nodes[0]
    assert isinstance(first, Leaf)
    return labels.get(first.name) in first.labels


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("cells", [1 << 29, 0])
def test_forks_are_solved_as_if_every_way_were_tried(
    seed: int, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CELLS", cells)
    nodes = relabelled(tree(seed))
    every = list(all_ways(nodes))
    smallest = min(nbytes for nbytes, _, _ in every)
    for budget in (smallest, smallest + 15, smallest + 60, 1000):
        nbytes, loss, _ = figures(nodes, choose(nodes, budget))
        best = min(other for size, other, _ in every if size <= budget)
        assert nbytes <= budget
        assert loss == pytest.approx(best) if cells else best - 1e-9 <= loss < best + 2
    with pytest.raises(DoesNotFit):
        choose(nodes, smallest - 1)


def relabelled(nodes: Sequence[Node]) -> list[Node]:
    """The nodes with labels that say under which way of a fork they stand."""
    count = itertools.count()

    def of(node: Node, mark: str) -> Node:
        if isinstance(node, Leaf):
            return Leaf(node.name, tuple(mark + label for label in node.labels), node.options)
        ways = []
        for way in node.ways:
            own = f"{next(count)}/"
            ways.append(Way(tuple(of(inner, own) for inner in way.nodes), way.loss, way.fixed))
        return Fork(tuple(ways))

    return [of(node, "") for node in nodes]


@pytest.mark.parametrize("seed", range(8))
def test_a_second_budget_of_seconds_is_kept_and_costs_little(seed: int) -> None:
    nodes = relabelled(tree(seed))
    every = list(all_ways(nodes))
    budget = sorted(nbytes for nbytes, _, _ in every)[len(every) // 2]
    free = figures(nodes, choose(nodes, budget))
    fastest = min(seconds for nbytes, _, seconds in every if nbytes <= budget)
    limit = (free[2] + fastest) / 2
    nbytes, loss, seconds = figures(nodes, choose(nodes, budget, limit))
    best = min(other for size, other, time in every if size <= budget and time <= limit)
    assert nbytes <= budget
    assert seconds <= limit
    # The price of a second finds what lies on the hull: near the optimum, not always it.
    assert best - 1e-9 <= loss <= best + 1
    assert choose(nodes, budget, 1e9) == choose(nodes, budget)
    with pytest.raises(DoesNotFit, match="seconds"):
        choose(nodes, budget, 0.5)
