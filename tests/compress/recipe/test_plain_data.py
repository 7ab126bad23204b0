"""Data of a recipe that is too large, too deep, or not text is refused at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from compress.errors import UserError
from compress.recipe.plain_data import DEEPEST, MOST_VALUES, check_plain_data
from compress.recipe.recipe import Recipe


def alias_bomb(levels: int) -> str:
    """Nine aliases of the level before at every level: nine to the power of ``levels`` values in a few lines."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]")
    return "\n".join(lines)


def deep(levels: int) -> Any:
    data: Any = "x"
    for _ in range(levels):
        data = [data]
    return data


@pytest.mark.parametrize("levels", [6, 9, 30])
def test_an_alias_bomb_is_refused_without_expanding_it(levels: int) -> None:
    with pytest.raises(UserError, match=f"more than {MOST_VALUES} values"):
        check_plain_data(yaml.safe_load(alias_bomb(levels)), "bomb.yaml")


@pytest.mark.parametrize("place", ["name", "when", "steps", "x"])
def test_a_recipe_file_with_a_bomb_ends_in_a_sentence_that_names_it(tmp_path: Path, place: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"{alias_bomb(9)}\n{place}: *a8\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"mine\.yaml has more than"):
        Recipe.load(path)


def test_a_value_that_contains_itself_is_refused() -> None:
    with pytest.raises(UserError, match="contains itself"):
        check_plain_data(yaml.safe_load("a: &a [*a]"), "mine.yaml")


def test_the_limits_are_what_they_say() -> None:
    check_plain_data([0] * (MOST_VALUES - 1), "mine.yaml")
    with pytest.raises(UserError, match="values"):
        check_plain_data([0] * MOST_VALUES, "mine.yaml")
    check_plain_data(deep(DEEPEST), "mine.yaml")
    with pytest.raises(UserError, match="levels deep"):
        check_plain_data(deep(DEEPEST + 1), "mine.yaml")


@pytest.mark.parametrize("data", [{"a": "\ud800"}, {"\ud800": 1}, [["\udfff"]]])
def test_lone_surrogates_are_refused_as_keys_and_values(data: Any) -> None:
    with pytest.raises(UserError, match="not valid UTF-8"):
        check_plain_data(data, "mine.yaml")


def test_names_of_files_that_are_too_long_are_no_files() -> None:
    long = "x" * 5000
    recipe = Recipe.parse({"name": "a", "calibrate": {"data": long}, "steps": [{"quantize": {"bits": 4}}]})
    assert recipe.public()["calibrate"]["data"] == long
    with pytest.raises(UserError, match="no recipe"):
        Recipe.load(long)
