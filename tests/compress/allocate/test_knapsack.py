"""Ranks by layer: within the budget, and better than uniform ones by the measure that they are chosen by."""

from __future__ import annotations

import itertools

import pytest
import torch

from compress.allocate.knapsack import Choices, Curve, allocate, curve
from compress.structures.choices import Choice, Option, along_ranks
from compress.structures.low_rank.factors import Factors


def curves(ratio: float = 0.6) -> dict[str, Curve]:
    shapes = {"steep": (64, 96), "flat": (96, 64), "wide": (64, 256), "small": (32, 32)}
    decays = {"steep": 0.8, "flat": 0.995, "wide": 0.95, "small": 0.9}
    found = {}
    for name, shape in shapes.items():
        values = decays[name] ** torch.arange(min(shape))
        uniform = 2 * Factors(ratio).rank_of(shape) * sum(shape)
        found[name] = curve(
            along_ranks(values, Factors(ratio), shape, Choice(0)),
            uniform=uniform,
            whole=2 * shape[0] * shape[1],
            total=float(values.square().sum()),
        )
    return found


def taken(found: dict[str, Curve], choices: Choices) -> dict[str, Option | None]:
    return {
        name: None if choice is None else next(o for o in found[name].options if o.choice == choice)
        for name, choice in choices.items()
    }


def cost(found: dict[str, Curve], choices: Choices) -> int:
    return sum(
        found[n].whole if option is None else option.nbytes for n, option in taken(found, choices).items()
    )


def loss(found: dict[str, Curve], choices: Choices) -> float:
    return sum(0.0 if option is None else option.loss for option in taken(found, choices).values())


@pytest.mark.parametrize("rule", ["split", "energy", "truncation", "fisher"])
@pytest.mark.parametrize("ratio", [0.4, 0.6, 0.8])
def test_budget_and_multiples(rule: str, ratio: float) -> None:
    found = curves(ratio)
    choices = allocate(found, rule)
    assert set(choices) == set(found)
    assert cost(found, choices) <= sum(one.uniform for one in found.values())
    for name, option in taken(found, choices).items():
        assert option is None or (option.choice.rank % 8 in (0, 6, 7) and option.nbytes < found[name].whole)


@pytest.mark.parametrize("ratio", [0.4, 0.6, 0.8])
def test_least_loss(ratio: float) -> None:
    found = curves(ratio)
    assert loss(found, allocate(found, "fisher")) < loss(found, allocate(found, "split"))


def test_near_the_best_of_all() -> None:
    found = {name: one for name, one in curves().items() if name != "wide"}
    budget = sum(one.uniform for one in found.values())
    every = (
        dict(zip(found, choices, strict=True))
        for choices in itertools.product(*([None, *(o.choice for o in c.options)] for c in found.values()))
    )
    best = min(loss(found, choices) for choices in every if cost(found, choices) <= budget)
    assert loss(found, allocate(found, "fisher")) <= 1.2 * best


def test_energy_loses_equal_shares() -> None:
    found = curves()
    shares = {
        name: (found[name].options, option, option.loss / found[name].total)
        for name, option in taken(found, allocate(found, "energy")).items()
        if option is not None
    }
    assert set(shares) == set(found)
    for name, (options, option, _) in shares.items():
        others = [share for other, (_, _, share) in shares.items() if other != name]
        place = options.index(option)
        # The option before would lose more than the others do, or the weight is at an end.
        assert place in (0, len(options) - 1) or options[place - 1].loss / found[name].total >= min(others)


def test_only_what_is_worth_its_bytes() -> None:
    worse = [
        Option(10, 5.0, Choice(8)),
        Option(20, 6.0, Choice(16)),
        Option(30, 1.0, Choice(24)),
        Option(9, 5.0, Choice(1)),
    ]
    one = curve(worse, uniform=30, whole=40, total=9.0)
    assert [option.nbytes for option in one.options] == [9, 30]
    with pytest.raises(ValueError, match="smaller"):
        curve(worse, uniform=30, whole=5, total=9.0)


def bumpy(first: float, middle: float, last: float) -> Curve:
    """Three options of 10, 20 and 30 bytes."""
    losses = zip((10, 20, 30), (first, middle, last), strict=True)
    options = [Option(size, loss, Choice(rank)) for rank, (size, loss) in enumerate(losses, 1)]
    return curve(options, uniform=20, whole=1000, total=first)


def test_a_small_step_before_a_large_one_does_not_hide_it() -> None:
    # The first step of `late` gains 1 and its second 80: together 40.5 for each, more than either step of `even`.
    found = {"late": bumpy(81.0, 80.0, 0.0), "even": bumpy(60.0, 40.0, 20.0)}
    best = {"late": 3, "even": 1}
    for rule in ("truncation", "fisher"):
        assert {name: c.rank for name, c in allocate(found, rule).items() if c is not None} == best


def test_with_many_weights_it_is_next_to_the_bound_of_lagrangian_relaxation() -> None:
    generator = torch.Generator().manual_seed(0)
    found, drops = {}, torch.rand(60, 6, generator=generator) ** 4
    for number, row in enumerate(drops):
        losses = (row.sum() - row.cumsum(0)).clamp_min(0).tolist()
        options = [Option(10 * n, value, Choice(n)) for n, value in enumerate([float(row.sum()), *losses], 1)]
        found[str(number)] = curve(options, uniform=40, whole=1000, total=float(row.sum()))
    # For any price of a byte, the least sum of loss and price, less the price of the budget, is below the best there is.
    bound = max(
        sum(min(o.loss + price * o.nbytes for o in one.options) for one in found.values()) - price * 40 * 60
        for price in torch.linspace(0, 0.1, 500).tolist()
    )
    best = loss(found, allocate(found, "fisher"))
    assert bound <= best <= bound + float(drops.max())
    assert best < 0.5 * loss(found, allocate(found, "split"))


def test_what_a_long_step_leaves_over_is_spent_in_single_steps() -> None:
    def of(*losses: float) -> Curve:
        options = [Option(10 * rank, loss, Choice(rank)) for rank, loss in enumerate(losses, 1)]
        return curve(options, uniform=20, whole=1000, total=losses[0])

    # 80 bytes: 10 for each, 20 more for `steep`, 10 for `short`. The rest does not pay the step of 20 that `late` needs.
    found = {
        "late": of(100.0, 90.0, 0.0),
        "short": of(60.0, 0.0),
        "lone": of(1.0),
        "steep": of(200.0, 100.0, 10.0),
    }
    chosen = {name: choice.rank for name, choice in allocate(found, "fisher").items() if choice is not None}
    assert chosen == {"late": 2, "short": 2, "lone": 1, "steep": 3}
