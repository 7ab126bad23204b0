"""How the text of options is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from compress_cli import options

from compress.assets import recipes_dir
from compress.errors import UserError


def test_settings_are_yaml() -> None:
    pairs = [
        "quantize.group_size=64",
        " true_sequential = true",
        "solver={name: gptq, damping: 0.1}",
        "targets=[a=b]",
    ]
    assert options.settings([*pairs, "quantize.symmetric=false"]) == {
        "quantize.group_size": 64,
        "true_sequential": True,
        "solver": {"name": "gptq", "damping": 0.1},
        "targets": ["a=b"],
        "quantize.symmetric": False,
    }
    assert options.settings(None) == {}


def test_a_setting_that_is_not_yaml_is_refused() -> None:
    with pytest.raises(UserError, match="YAML"):
        options.settings(["targets=[a"])


@pytest.mark.parametrize("pair", ["quantize.group_size", "=64", " = "])
def test_a_setting_without_key_or_value_is_refused(pair: str) -> None:
    with pytest.raises(UserError, match="KEY=VALUE"):
        options.settings([pair])


def test_a_setting_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match="twice"):
        options.settings(["a=1", "a=2"])


def test_shipped_recipes_are_completed() -> None:
    assert {"w8", "w4-rtn", "w4-gptq", "w3-gptq", "w2-gptq"} <= set(options.recipe_names())


@pytest.mark.parametrize(
    ("recipe", "scheme", "found"),
    [
        ("w8", None, "w8"),
        (str(recipes_dir() / "w8.yaml"), None, str(recipes_dir() / "w8.yaml")),
        (None, "int4", "int4"),
    ],
)
def test_a_recipe_by_its_name_or_by_its_scheme(recipe: str | None, scheme: str | None, found: str) -> None:
    assert options.recipe_of(recipe, scheme, {}) == found


def test_a_mistake_in_a_recipe_is_told_before_torch_is_imported() -> None:
    with pytest.raises(UserError, match="quantize"):
        options.recipe_of("w8", None, {"quantise.bits": 4})
    with pytest.raises(UserError, match="no recipe file"):
        options.recipe_of("mine.yaml", None, {})


@pytest.mark.parametrize(
    ("recipe", "scheme", "match"),
    [
        (None, None, "either a recipe"),
        ("w8", "W8A8", "either a recipe"),
        (None, "W9A16", "no recipe or scheme called 'W9A16'; did you mean"),
        (None, "mine.yaml", "no recipe or scheme"),
        (None, "mxfp6", "is not written here"),
    ],
)
def test_neither_both_or_an_unknown_scheme(recipe: str | None, scheme: str | None, match: str) -> None:
    with pytest.raises(UserError, match=match):
        options.recipe_of(recipe, scheme, {})


def test_of_several_processes_one_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = tmp_path / "none"
    for check in (options.checkpoints, options.readable):
        with pytest.raises(UserError):
            check(str(missing))
    with pytest.raises(UserError):
        options.folders(missing)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert options.checkpoints(str(missing)) == options.readable(str(missing)) == str(missing)
    assert options.folders(missing) == missing
