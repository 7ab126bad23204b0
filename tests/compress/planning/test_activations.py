"""Activation schemes that a model, a weight or a form cannot have are refused when the recipe is planned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.skeleton import Skeleton, open_skeleton
from compress.planning.make import make_plan
from compress.planning.plan import Plan
from compress.recipe.recipe import Recipe

EIGHT = {"bits": 8, "group_size": "channel"}


@pytest.fixture(scope="module")
def skeleton(tiny_model: Callable[..., Path]) -> Skeleton:
    return open_skeleton(open_source(tiny_model("llama")))


def plan(skeleton: Skeleton, *steps: dict[str, Any], format: str = "auto", **others: Any) -> Plan:
    return make_plan(skeleton, Recipe.parse({"name": "x", "steps": list(steps), **others}), format=format)


@pytest.mark.parametrize(
    ("step", "format", "words"),
    [
        ({"quantize": EIGHT, "activations": {"strategy": "group", "group_size": 48}}, "auto", "does not divide the 64"),
        (
            {"quantize": EIGHT, "targets": ["lm_head"], "activations": {"dynamic": False}},
            "auto",
            "outside the decoder blocks",
        ),
        ({"quantize": EIGHT, "targets": ["embeddings"], "activations": {}}, "auto", "is an embedding"),
        ({"quantize": EIGHT, "activations": {}}, "dense", "which a dense checkpoint does not express"),
        (
            {"quantize": {"type": "nf4", "group_size": 32}, "activations": {}},
            "bitsandbytes",
            "which bitsandbytes' form does not express",
        ),
        (
            {"quantize": EIGHT, "activations": {"observer": "median"}},
            "auto",
            "there is no observer called 'median'",
        ),
        (
            {"quantize": EIGHT, "activations": {"observer": {"name": "percentile", "percentile": 10.0}}},
            "auto",
            "above 50",
        ),
    ],
)  # fmt: skip
def test_refused_in_one_sentence(skeleton: Skeleton, step: dict[str, Any], format: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        plan(skeleton, step, format=format)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("activations", "words"),
    [
        ({"strategy": "channel"}, "activations.strategy"),
        ({"strategy": "token", "dynamic": False}, "static scales go with strategy 'tensor'"),
        ({"type": "float", "bits": 6}, "float activations have 8 bits"),
        ({"num_bits": 8}, "did you mean 'bits'"),
    ],
)
def test_a_recipe_with_a_strategy_that_no_format_has(activations: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Recipe.parse({"name": "x", "steps": [{"quantize": EIGHT, "activations": activations}]})


def test_the_former_key_names_the_new_one() -> None:
    with pytest.raises(UserError, match="is a key of the step, beside 'quantize'"):
        Recipe.parse({"name": "x", "steps": [{"quantize": {**EIGHT, "activations": 8}}]})
    old = Recipe.parse({"name": "x", "steps": [{"quantize": {**EIGHT, "activations": None}}]})
    assert old.steps[0].activations is None


def test_weights_that_servers_fuse_share_one_scheme(skeleton: Skeleton) -> None:
    first = {"quantize": EIGHT, "activations": {}}
    other = {"targets": ["re:.*q_proj"], "quantize": EIGHT, "activations": {"type": "float"}}
    with pytest.raises(UserError, match="inputs fp8 per token"):
        plan(skeleton, first, other)


@pytest.mark.parametrize(
    ("activations", "names", "needs_data"),
    [
        ({}, set(), False),
        ({"dynamic": False}, {"input_scale"}, True),
        ({"dynamic": False, "symmetric": False}, {"input_scale", "input_zero_point"}, True),
    ],
)
def test_static_scales_are_planned_to_the_byte_and_need_data(
    skeleton: Skeleton, activations: dict[str, Any], names: set[str], needs_data: bool
) -> None:
    made = plan(skeleton, {"quantize": EIGHT, "activations": activations, "solver": "nearest"})
    weight = made.weights[0]
    assert {name.rpartition(".")[2] for name in weight.tensors} == {"weight", "weight_scale", *names}
    assert made.needs_data is needs_data
    assert made.to_json()["weights"][weight.name]["activations"]["bits"] == 8


def test_integer_products_take_one_byte_a_weight(skeleton: Skeleton) -> None:
    def form(quantize: dict[str, Any], activations: dict[str, Any]) -> str:
        return plan(skeleton, {"quantize": quantize, "activations": activations}).weights[0].layout.name

    assert form(EIGHT, {}) == form(EIGHT, {"dynamic": False}) == "int-quantized"
    assert form({"bits": 8, "group_size": 32}, {}) == "pack-quantized"
    assert form({**EIGHT, "symmetric": False}, {}) == "pack-quantized"
    assert form(EIGHT, {"type": "float"}) == "pack-quantized"
    assert form({"bits": 4, "group_size": 32}, {}) == "pack-quantized"
