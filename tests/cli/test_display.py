"""Figures as people and scripts read them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import pytest

from compress_cli.display import bar, figure, plain, print_json, readable_bytes, readable_count


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (13_180_000, "13.2 MB"),
        (999_700, "1.00 MB"),
        (8.1e9, "8.10 GB"),
    ],
)
def test_bytes(count: int, text: str) -> None:
    assert readable_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(7, "7"), (4096, "4.10 K"), (12_600_000, "12.6 M"), (8e9, "8.00 B")]
)
def test_counts(count: int, text: str) -> None:
    assert readable_count(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (math.inf, "–"),
        (math.nan, "–"),
        (0.0, "0.000"),
        (0.00012, "0.00012"),
        (24.7891, "24.789"),
    ],
)
def test_figures(value: float | None, text: str) -> None:
    assert figure(value) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0, ""), (1, "████"), (2, "████"), (-1, ""), (0.5, "██"), (0.15625, "▋")]
)
def test_bars(share: float, text: str) -> None:
    assert bar(share, 4) == text


class Colour(StrEnum):
    red = "red"


@dataclass(frozen=True)
class Point:
    x: float
    path: Path
    colour: Colour = Colour.red


def test_json_of_any_value(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"points": (Point(math.nan, Path("a/b")),), "none": None, "yes": True, "n": 3})
    assert json.loads(capsys.readouterr().out) == {
        "points": [{"x": None, "path": "a/b", "colour": "red"}],
        "none": None,
        "yes": True,
        "n": 3,
    }


def test_a_value_that_knows_its_json_says_it_itself() -> None:
    class Known:
        def to_json(self) -> dict[str, float]:
            return {"a": math.inf}

    assert plain([Known()]) == [{"a": None}]
