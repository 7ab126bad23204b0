"""Options of methods are of the types of the fields that they fill, and of sensible sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml

from compress.errors import UserError
from compress.planning.methods import methods_of
from compress.planning.options import checked_options
from compress.recipe.recipe import Recipe
from compress.recipe.registry import SOLVERS, find


def gptq(**options: Any) -> dict[str, Any]:
    return checked_options(find("solver", "gptq"), options, "solver 'gptq'")


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({}, {}),
        ({"damping": 1, "act_order": False, "block": 64}, {"damping": 1.0, "act_order": False, "block": 64}),
        ({"clip_ratios": [1.0, 0.9]}, {"clip_ratios": (1.0, 0.9)}),
        ({"input_correction": "gptaq"}, {"input_correction": "gptaq"}),
        ({"damping": 0}, {"damping": 0}),
    ],
)
def test_values_of_the_right_type(options: dict[str, Any], taken: dict[str, Any]) -> None:
    assert gptq(**options) == taken


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"damping": "0.01"}, "valid number, not '0.01'"),
        ({"damping": None}, "option 'damping'"),
        ({"damping": True}, "option 'damping'"),
        ({"damping": float("nan")}, "from 0 to 1000000"),
        ({"damping": 1e308}, "from 0 to 1000000"),
        ({"damping": -1}, "from 0 to 1000000"),
        ({"block": 1.5}, "option 'block'"),
        ({"block": 0}, "from 1 to 1000000"),
        ({"block": 10**30}, "from 1 to 1000000"),
        ({"act_order": "yes"}, "option 'act_order'"),
        ({"act_order": 1}, "option 'act_order'"),
        ({"input_correction": "x" * 10_000}, "option 'input_correction'"),
        ({"clip_ratios": []}, "at least one"),
        ({"clip_ratios": [1.0, "x"]}, "option 'clip_ratios'"),
        ({"clip_ratios": [1.0, float("inf")]}, "from 0"),
        ({"clip_ratios": 1.0}, "option 'clip_ratios'"),
    ],
)
def test_others_are_refused_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match="solver 'gptq', option ") as refused:
        gptq(**options)
    assert words in str(refused.value)
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize("name", SOLVERS)
def test_every_method_can_be_checked(name: str) -> None:
    assert checked_options(find("solver", name), {}, name) == {}


def test_a_recipe_names_the_option() -> None:
    recipe = Recipe.parse(
        yaml.safe_load("{name: x, steps: [{quantize: {bits: 4}, solver: {name: gptq, damping: [1]}}]}")
    )
    with pytest.raises(UserError, match="solver 'gptq', option 'damping'"):
        methods_of(recipe.steps[0], torch.bfloat16)
