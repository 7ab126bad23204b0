"""Weights share an input factor where that loses less at the bytes that they have apart, and only there."""

from __future__ import annotations

from compress.allocate.knapsack import Curve, curve
from compress.allocate.shared_factors import Group, allocate_shared
from compress.structures.choices import Choice, Option


def curve_of(scale: float, *, price: int = 10, uniform: int = 40) -> Curve:
    """Losses that halve with every rank."""
    options = [Option(price * rank, scale * 0.5**rank, Choice(rank)) for rank in range(1, 9)]
    return curve(options, uniform=uniform, whole=1000, total=scale)


def together(scale: float, members: tuple[str, ...] = ("q", "k")) -> Group:
    return Group(members, curve_of(scale, price=15, uniform=80))


def test_a_group_that_gains_shares_and_spends_what_it_saves() -> None:
    curves = {"q": curve_of(8.0), "k": curve_of(8.0), "o": curve_of(8.0)}
    chosen = allocate_shared(curves, [together(1.0)], "truncation")
    assert chosen["q"] is not None
    assert chosen["q"] == chosen["k"]
    assert chosen["q"].shared == "q"
    assert chosen["o"] is not None
    assert chosen["o"].shared is None
    cost = 15 * chosen["q"].rank + 10 * chosen["o"].rank
    assert cost <= 3 * 40
    assert chosen["o"].rank > 4  # more than uniform ranks would give it


def test_a_group_that_loses_by_it_does_not_share() -> None:
    curves = {"q": curve_of(8.0), "k": curve_of(8.0), "o": curve_of(8.0)}
    chosen = allocate_shared(curves, [together(100.0)], "truncation")
    assert all(choice is not None and choice.shared is None for choice in chosen.values())
    assert {choice.rank for choice in chosen.values() if choice is not None} == {4}


def test_losing_as_much_is_no_gain() -> None:
    curves = {"q": curve_of(1.0), "k": curve_of(1.0)}
    apart = 2 * 0.5**4
    options = [Option(80, apart, Choice(4)), Option(90, apart / 2, Choice(8))]
    group = Group(("q", "k"), curve(options, uniform=80, whole=2000, total=2.0))
    chosen = allocate_shared(curves, [group], "truncation")
    assert all(choice is not None and choice.shared is None for choice in chosen.values())


def test_of_several_groups_only_those_that_gain() -> None:
    names = ("q", "k", "gate", "up")
    curves = {name: curve_of(8.0) for name in names}
    groups = [together(1.0, ("q", "k")), together(100.0, ("gate", "up"))]
    chosen = allocate_shared(curves, groups, "truncation")
    assert {name for name, choice in chosen.items() if choice is not None and choice.shared == "q"} == {
        "q",
        "k",
    }


def test_a_member_that_is_kept_whole_loses_nothing_and_is_left_alone() -> None:
    small = curve([Option(9, 5.0, Choice(1))], uniform=40, whole=10, total=9.0)
    curves = {"q": small, "k": curve_of(8.0)}
    chosen = allocate_shared(curves, [together(0.001)], "truncation")
    assert chosen["q"] is None
    assert chosen["k"] is not None
    assert chosen["k"].shared is None
