"""Scales: whether the ranking of methods holds at two sizes of a model."""

from __future__ import annotations

from collections.abc import Mapping

from compress.diagnose.base import Cell, Finding
from compress.system import units as words

NAME = "scales"


def finding(first: tuple[str, Mapping[str, float]], second: tuple[str, Mapping[str, float]]) -> Finding:
    """The methods by their mean loss in two models, and the pairs that change places.

    Args:
        first, second: the model's name, and method → loss, the same methods in both.
    """
    (small, one), (large, other) = first, second
    ranks = [
        {method: rank for rank, method in enumerate(sorted(found, key=lambda m: found[m]), 1)}
        for found in (one, other)
    ]
    pairs = [(a, b) for a in one for b in one if one[a] < one[b] and other[a] > other[b]]
    crossing = {method for pair in pairs for method in pair}
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            method,
            one[method],
            other[method],
            ranks[0][method],
            ranks[1][method],
            "crosses" if method in crossing else "",
        )
        for method in sorted(one, key=lambda m: one[m])
    )
    if pairs:
        a, b = pairs[0]
        said = f"{words.capitalized(a)} is ahead of {b} in {small} and behind it in {large}"
        advice = f"{said}: choose on the size that will be used."
    else:
        advice = f"{small} and {large} rank the methods alike: the smaller of them is enough to choose on."
    columns = ("method", f"loss in {small}", f"loss in {large}", "rank", "rank there", "")
    return Finding(NAME, "Ranking at two sizes", columns, rows, advice)
