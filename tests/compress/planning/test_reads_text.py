"""Whether a recipe looks at text is known from the recipe, and is what its plan says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compress import plan
from compress.planning.reads_text import reads_text
from compress.recipe.recipe import Recipe

INT4 = {"bits": 4, "group_size": 32}
ROUNDED = {"quantize": INT4}
CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "rounded": ({"steps": [ROUNDED]}, False),
    "gptq": ({"steps": [{**ROUNDED, "solver": "gptq"}]}, True),
    "block solver": ({"steps": [{**ROUNDED, "solver": "signround"}]}, True),
    "static inputs": ({"steps": [{**ROUNDED, "activations": {"bits": 8, "dynamic": False}}]}, True),
    "awq": ({"transforms": ["awq"], "steps": [ROUNDED]}, True),
    "rotated": ({"transforms": ["rotation"], "steps": [ROUNDED]}, False),
    "named blocks": ({"depth_pruning": {"blocks": [1]}}, False),
    "chosen blocks": ({"depth_pruning": {"blocks": 1}}, True),
    "width": ({"width_pruning": {"neurons": 0.5}}, True),
}


@pytest.mark.parametrize("case", CASES)
def test_which_parts_read_text(case: str) -> None:
    settings, expected = CASES[case]
    assert reads_text(Recipe.parse({"name": "test", **settings}), torch.bfloat16) is expected


@pytest.mark.parametrize("name", ["w8", "w4-rtn", "w4-gptq", "w8a8", "w4-kv8", "q4_k_m", "nf4-gptq"])
def test_shipped_recipes_are_as_their_plans_say(name: str) -> None:
    assert reads_text(Recipe.load(name), torch.bfloat16) is plan("embedded", name).needs_data
