"""What a recipe makes, in a few words, and the list of those that ship."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from compress_cli.main import app
from compress_cli.recipes import what_it_makes
from typer.testing import CliRunner

from compress.recipe.recipe import Recipe, shipped
from compress.recipe.schemes import SCHEMES

GRID = {"quantize": {"bits": 4}}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"steps": [GRID]}, "4 bits"),
        ({"steps": [GRID, {**GRID, "targets": ["experts"]}]}, "4 bits"),
        ({"steps": [GRID, {"quantize": {"bits": 8}, "targets": ["experts"]}]}, "4 bits, 8 bits"),
        ({"steps": [{"prune": {"sparsity": 0.5}, "solver": "wanda"}]}, "50% zeros"),
        ({"steps": [{"prune": {"pattern": "2:4"}, **GRID, "solver": "awp"}]}, "2:4 zeros + 4 bits"),
        ({"steps": [{"lowrank": {"ratio": 0.8}, "solver": "weighted_svd"}]}, "80% low rank"),
        ({"steps": [{"lowrank": {"rank": 16}, **GRID, "solver": ["gptq", "eora"]}]}, "rank 16 + 4 bits"),
        (
            {"steps": [GRID], "embeddings": 8, "head": 6},
            "4 bits, 8 bits for the embeddings, 6 bits for the head",
        ),
        ({"depth_pruning": {"blocks": 2}}, "2 blocks fewer"),
        ({"width_pruning": {"neurons": 0.75}}, "75% of the neurons"),
        (
            {
                "depth_pruning": {"blocks": 1},
                "width_pruning": {"neurons": 0.5, "groups": 0.5},
                "steps": [GRID],
            },
            "1 blocks fewer, 50% of the neurons, 50% of the groups, 4 bits",
        ),
    ],
)
def test_in_a_few_words(data: dict[str, Any], words: str) -> None:
    assert what_it_makes(Recipe.parse({"name": "x", **data})) == words


@pytest.mark.parametrize("name", shipped())
def test_a_printed_recipe_is_the_start_of_ones_own(name: str) -> None:
    printed = CliRunner().invoke(app, ["recipes", name])
    assert printed.exit_code == 0
    assert Recipe.parse(yaml.safe_load(printed.stdout)) == Recipe.load(name)


def test_the_list_has_every_recipe_once() -> None:
    listed = json.loads(CliRunner().invoke(app, ["recipes", "--json"]).stdout)
    assert [row["name"] for row in listed] == list(shipped())
    assert all(set(row) == {"name", "what", "when", "schemes"} for row in listed)


def test_a_scheme_is_printed_with_its_changes() -> None:
    runner = CliRunner()
    printed = runner.invoke(app, ["recipes", "w8-a16"]).stdout
    assert Recipe.parse(yaml.safe_load(printed)) == Recipe.load("W8A16") != Recipe.load("w8")
    assert json.loads(runner.invoke(app, ["recipes", "w8a16", "--json"]).stdout)["name"] == "W8A16"
    listed = runner.invoke(app, ["recipes", "--all"]).stdout
    assert all(f" {scheme.name} " in listed.replace("\n", " \n ") for scheme in SCHEMES)
    rows = json.loads(runner.invoke(app, ["recipes", "--json"]).stdout)
    assert {name for row in rows for name in row["schemes"]} == {scheme.name for scheme in SCHEMES}


@pytest.mark.parametrize(
    ("wrong", "meant"), [("w4-gtpq", "w4-gptq"), ("narrow75", "prune-width75"), ("w9", "w8")]
)
def test_a_recipe_that_is_not_there(wrong: str, meant: str) -> None:
    result = CliRunner().invoke(app, ["recipes", wrong])
    assert result.exit_code == 2
    assert f"did you mean '{meant}'" in result.stderr
    assert result.stdout == ""
