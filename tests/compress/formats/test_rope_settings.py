"""Rotary settings of transformers 5 under their older names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.formats.rope_settings import older_rope_settings
from compress.recipe.recipe import Recipe

SCALED = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {}),
        ({"rope_theta": 5.0}, {}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, {"rope_theta": 7.0}),
        ({"rope_theta": 5.0, "rope_parameters": {"rope_theta": 7.0}}, {}),
        ({"rope_parameters": {"rope_theta": 7.0, **SCALED}}, {"rope_theta": 7.0, "rope_scaling": SCALED}),
        (
            {"rope_parameters": {"rope_theta": 7.0, "partial_rotary_factor": 0.5}},
            {"rope_theta": 7.0, "partial_rotary_factor": 0.5},
        ),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_theta": 7.0},
                    "sliding_attention": {"rope_theta": 3.0},
                }
            },
            {"rope_theta": 7.0, "rope_local_base_freq": 3.0},
        ),
        (
            {"text_config": {"hidden_size": 4, "rope_parameters": {"rope_theta": 7.0}}},
            {"text_config": {"hidden_size": 4, "rope_parameters": {"rope_theta": 7.0}, "rope_theta": 7.0}},
        ),
    ],
    ids=str,
)
def test_entries_that_are_missing(config: dict[str, Any], expected: dict[str, Any]) -> None:
    assert older_rope_settings(config) == expected


def test_mlx_is_told(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    step = {"quantize": {"bits": 4, "group_size": 32}, "solver": "nearest"}
    recipe = Recipe.parse({"name": "r", "steps": [step]})
    source = tiny_model("llama")
    theta = json.loads((source / "config.json").read_text())["rope_parameters"]["rope_theta"]
    out = compress.compress(source, recipe, tmp_path / "mlx", format="mlx").out
    assert json.loads((out / "config.json").read_text())["rope_theta"] == theta
    exported = compress.export(out, tmp_path / "again", format="mlx").out
    assert json.loads((exported / "config.json").read_text())["rope_theta"] == theta
