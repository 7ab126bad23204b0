"""Weights that a server runs as one have one outer scale, also when they are solved in turn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compress import compress
from compress.checkpoint.source import open_source
from compress.models.skeleton import open_skeleton
from compress.pipeline.shared_scales import with_shared_scales
from compress.planning.make import make_plan

NVFP4 = {"quantize": {"type": "nvfp4"}}
OUTER = "weight_global_scale"


def outer_scales(folder: Path, recipe: Any, source: Path, **options: Any) -> dict[str, float]:
    """Weight → its outer scale on disk."""
    compress(source, recipe, folder, **options)
    tensors: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return {name: float(tensor) for name, tensor in tensors.items() if name.endswith(OUTER)}


@pytest.mark.parametrize("in_turn", [False, True])
def test_weights_that_run_as_one_share_their_outer_scale(
    in_turn: bool, tiny_model: Callable[..., Path], tmp_path: Path, make_recipe: Callable[..., Any]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog " * 20)
    steps = [{**NVFP4, "solver": "gptq"}] if in_turn else [NVFP4]
    recipe = make_recipe(*steps, true_sequential=in_turn)
    found = outer_scales(
        tmp_path / "out", recipe, tiny_model("llama"), data=str(text), samples=2, length=32, format="native"
    )
    for block in range(2):
        layer = f"model.layers.{block}"
        attention = {found[f"{layer}.self_attn.{name}_proj.{OUTER}"] for name in "qkv"}
        mlp = {found[f"{layer}.mlp.{name}_proj.{OUTER}"] for name in ("gate", "up")}
        assert len(attention) == len(mlp) == 1
    assert len(set(found.values())) > 4


def test_the_largest_value_of_the_group_decides(
    tiny_model: Callable[..., Path], make_recipe: Callable[..., Any]
) -> None:
    skeleton = open_skeleton(open_source(tiny_model("llama")))
    plan = make_plan(skeleton, make_recipe(NVFP4))
    skeleton.load_block(0, device="cpu", dtype=torch.float32)
    planned = with_shared_scales(skeleton, plan.block(0))
    assert [weight.name for weight in planned] == [weight.name for weight in plan.block(0)]
    reach = {weight.view.module.rpartition(".")[2]: weight.methods.structure.reach for weight in planned}
    largest = {
        weight.view.module.rpartition(".")[2]: float(skeleton.parameter_of(weight.view).abs().max())
        for weight in planned
    }
    assert reach["q_proj"] == reach["k_proj"] == max(largest[f"{name}_proj"] for name in "qkv")
    assert reach["down_proj"] is None


def test_structures_without_such_a_scale_stay_as_they_are(
    tiny_model: Callable[..., Path], make_recipe: Callable[..., Any]
) -> None:
    skeleton = open_skeleton(open_source(tiny_model("llama")))
    plan = make_plan(skeleton, make_recipe({"quantize": {"bits": 4, "group_size": 16}}))
    assert with_shared_scales(skeleton, plan.block(0)) == plan.block(0)
