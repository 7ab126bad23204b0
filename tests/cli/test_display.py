"""Figures as people and scripts read them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import pytest
from compress_cli.display import bar, plain, print_json


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
