"""What a plan says of healing: tensors that may change, numbers that are trained, memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.skeleton import open_skeleton
from compress.planning.healed import healing_memory
from compress.planning.make import make_plan
from compress.planning.plan import Plan
from compress.recipe.recipe import Recipe

GRID = {
    "targets": ["linear"],
    "quantize": {"bits": 2, "group_size": 32, "symmetric": False},
    "solver": "nearest",
}


def planned(model: Path, heal: Any, **recipe: Any) -> Plan:
    keys = {"steps": [GRID], **recipe}
    return make_plan(open_skeleton(open_source(model)), Recipe.parse({"name": "test", **keys, "heal": heal}))


def test_norms_may_change_and_nothing_else(tiny_model: Callable[..., Path]) -> None:
    model = tiny_model("llama")
    plan = planned(model, "norms")
    assert len(plan.rewritten) == 5
    assert all("norm" in name for name in plan.rewritten)
    assert not set(plan.rewritten.values()) & set(plan.passed_through)
    assert plan.healed == {"norms": 5 * 64}
    bare = planned(model, None)
    assert bare.healed == {}
    assert bare.heal_note == ""
    assert bare.shards == plan.shards


def test_scales_count_with_their_zero_points(tiny_model: Callable[..., Path]) -> None:
    plan = planned(tiny_model("llama"), ["scales", "codes"])
    groups = sum(weight.numel // 32 for weight in plan.weights)
    assert plan.healed == {"scales": 2 * groups, "codes": sum(weight.numel for weight in plan.weights)}
    without = planned(tiny_model("llama"), [{"name": "scales", "zero_points": False}])
    assert without.healed == {"scales": groups}


def test_a_pruned_model_is_trained_where_no_step_compresses_it(tiny_model: Callable[..., Path]) -> None:
    pruned = {"steps": [], "depth_pruning": {"blocks": 1}}
    plan = planned(tiny_model("llama"), "values", **pruned)
    assert plan.healed["values"] == sum(
        view.shape[0] * view.shape[1] for view in plan.facts.views if view.block is not None
    )
    with pytest.raises(UserError, match="nothing to train as 'values'"):
        planned(tiny_model("llama"), "values")


def test_memory_grows_with_what_is_trained_and_shrinks_with_checkpointing(
    tiny_model: Callable[..., Path],
) -> None:
    skeleton = open_skeleton(open_source(tiny_model("llama")))

    def memory(numbers: int, **heal: Any) -> int:
        recipe = Recipe.parse({"name": "test", "steps": [GRID], "heal": {"train": "norms", **heal}})
        return healing_memory(skeleton, recipe, [], {"norms": numbers}, 1000, torch.float32)

    assert memory(1000) - memory(0) == 28_000
    assert memory(1000, offload=True) - memory(0, offload=True) == 12_000
    assert memory(0, checkpointing=True) < memory(0)
    bare = Recipe.parse({"name": "test", "steps": [GRID]})
    assert healing_memory(skeleton, bare, [], {}, 1000, torch.float32) == 0
