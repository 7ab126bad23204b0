"""The tensors of an output: every one of the source is packed, copied or changed in place, and what stays has a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.api import plan
from compress.checkpoint.source import open_source
from compress.planning.plan import Plan
from compress.recipe.recipe import Recipe

Tiny = Callable[..., Path]
GRID = {"quantize": {"bits": 4, "group_size": 32}}


def planned(model: Path, **recipe: Any) -> Plan:
    return plan(model, Recipe.parse({"name": "t", "steps": [GRID], **recipe}))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gpt_oss", "phi3"])
def test_every_source_tensor_is_packed_or_copied(tiny_model: Tiny, family: str) -> None:
    found = planned(tiny_model(family))
    headers = open_source(tiny_model(family)).headers
    packed = {source for weight in found.weights for source in weight.view.sources}
    assert packed | set(found.passed_through) == set(headers)
    assert not packed & set(found.passed_through)


def test_outputs_stand_in_the_order_of_the_source(tiny_model: Tiny) -> None:
    found = planned(tiny_model("llama"))
    slots = {slot.name for shard in found.shards for slot in shard.slots}
    expected = {name for weight in found.weights for name in weight.tensors} | set(found.passed_through)
    assert slots == expected


def test_copied_tensors_keep_shape_and_dtype(tiny_model: Tiny) -> None:
    found = planned(tiny_model("llama"))
    headers = open_source(tiny_model("llama")).headers
    for slot in (slot for shard in found.shards for slot in shard.slots):
        if slot.name in found.passed_through:
            info = headers[slot.name]
            assert (slot.spec.shape, slot.spec.dtype) == (info.shape, info.dtype)


def test_vectors_that_a_transform_may_change_are_not_copied(tiny_model: Tiny) -> None:
    plain = planned(tiny_model("llama"))
    scaled = planned(tiny_model("llama"), transforms="awq")
    assert plain.rewritten == {}
    assert set(scaled.rewritten.values()) == {
        f"model.layers.{block}.{norm}_layernorm.weight"
        for block in (0, 1)
        for norm in ("input", "post_attention")
    }
    assert set(plain.passed_through) == set(scaled.passed_through) | set(scaled.rewritten.values())


def test_what_stays_has_its_reason_and_its_bytes(tiny_model: Tiny) -> None:
    step = {**GRID, "ignore": ["re:.*down_proj"]}
    reasons = {skipped.name: skipped for skipped in planned(tiny_model("llama"), steps=[step]).skipped}
    assert reasons["model.layers.0.mlp.down_proj"].reason == "ignored by the recipe ('re:.*down_proj')"
    assert reasons["model.layers.0.mlp.down_proj"].nbytes == 2 * 64 * 128
    assert reasons["lm_head"].reason == "not targeted by the recipe"


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_routers_are_copied(tiny_model: Tiny, family: str) -> None:
    found = planned(tiny_model(family))
    routers = [name for name in found.passed_through if name.endswith(("gate.weight", "router.weight"))]
    assert len(routers) == 2
    assert all(skipped.reason for skipped in found.skipped)
