"""Which inputs are rotated while the model runs: those that are rounded and that no rotated space reaches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.skeleton import open_skeleton
from compress.planning.make import make_plan
from compress.planning.methods import rotation_of
from compress.planning.plan import Plan
from compress.recipe.recipe import Recipe
from compress.transforms.rotate import rotate
from compress.transforms.rotation import plan_rotation


def _plan(folder: Path, rotation: dict[str, Any], **step: Any) -> Plan:
    given = {"targets": ["linear"], "quantize": {"bits": 8, "group_size": 16}, "solver": "nearest", **step}
    recipe = Recipe.parse({"name": "r", "transforms": [{"name": "rotation", **rotation}], "steps": [given]})
    skeleton = open_skeleton(open_source(folder))
    settings = rotation_of(recipe)
    assert settings is not None
    return make_plan(open_skeleton(rotate(skeleton, plan_rotation(skeleton, settings, 0))), recipe)


def _blocks(plan: Plan) -> dict[str, int]:
    return {
        weight.name.rpartition("layers.0.")[2]: weight.activations.hadamard
        for weight in plan.weights
        if weight.view.block == 0
        and weight.activations is not None
        and weight.activations.hadamard is not None
    }


def test_only_what_no_rotation_reaches(tiny_model: Callable[..., Path]) -> None:
    source, inputs = tiny_model("llama"), {"activations": {"bits": 8}}
    assert _blocks(_plan(source, {"online": True}, **inputs)) == {"mlp.down_proj": 128}
    without_values = _plan(source, {"online": True, "values": False}, **inputs)
    assert _blocks(without_values) == {"self_attn.o_proj": 64, "mlp.down_proj": 128}
    assert _blocks(_plan(source, {}, **inputs)) == {}
    assert _blocks(_plan(source, {"online": True})) == {}


def test_a_block_is_the_largest_power_of_two_that_divides(tiny_model: Callable[..., Path]) -> None:
    source = tiny_model("llama", intermediate_size=96)
    assert _blocks(_plan(source, {"online": True}, activations={"bits": 8})) == {"mlp.down_proj": 32}


def test_a_diagonal_score_gathers_the_whole_matrix_there(tiny_model: Callable[..., Path]) -> None:
    plan = _plan(
        tiny_model("llama"),
        {"online": True},
        activations={"bits": 8},
        score="activation-diagonal",
        solver="gptq",
    )
    needs = {weight.name: weight.needs for weight in plan.weights}
    assert "gram" in needs["model.layers.0.mlp.down_proj"]
    assert needs["model.layers.0.mlp.up_proj"] >= {"diagonal"}


def test_static_scales_are_refused(tiny_model: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"steps\.0\.activations: rotated inputs have dynamic scales"):
        _plan(tiny_model("llama"), {"online": True}, activations={"bits": 8, "dynamic": False})
