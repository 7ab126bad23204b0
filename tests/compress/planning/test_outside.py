"""Weights outside the blocks: what is refused at plan time, in one sentence, and which solvers they get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.skeleton import open_skeleton
from compress.planning.batches import Batch
from compress.planning.make import make_plan
from compress.planning.memory import _outside
from compress.recipe.recipe import Recipe

GRID = {"bits": 4, "group_size": 32}


def plan_of(folder: Path, *steps: dict[str, Any], without_head: bool = False, **settings: Any) -> Any:
    recipe = Recipe.parse({"name": "test", "steps": list(steps), **settings})
    skeleton = open_skeleton(open_source(folder))
    if without_head:
        skeleton._flow = replace(skeleton.flow, without_head=True)
    return make_plan(skeleton, recipe, format="native")


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (
            {"targets": ["embeddings"], "solver": "gptq"},
            "embed_tokens lies outside the decoder blocks, where only",
        ),
        ({"targets": ["head"], "solver": "nearest", "score": "fisher"}, "of which no gradients are gathered"),
        ({"targets": ["head"], "solver": ["nearest", "signround"]}, "works on whole blocks"),
        ({"targets": ["embeddings"], "solver": ["nearest", "signround"]}, "works on whole blocks"),
    ],
)
def test_what_data_cannot_serve_is_refused(
    step: dict[str, Any], sentence: str, tiny_model: Callable[..., Path]
) -> None:
    with pytest.raises(UserError, match=rf"steps\.0: .*{sentence}.*step of its own with"):
        plan_of(tiny_model("llama"), {"quantize": GRID, **step})


def test_a_head_that_is_never_called_is_refused(tiny_model: Callable[..., Path]) -> None:
    step = {"targets": ["head"], "quantize": GRID, "solver": "gptq"}
    with pytest.raises(UserError, match="LlamaForCausalLM does not call its output head as a module"):
        plan_of(tiny_model("llama"), step, without_head=True)
    assert plan_of(tiny_model("llama"), {**step, "solver": "nearest"}, without_head=True).weights


def test_the_flow_sees_whether_the_head_is_called(tiny_model: Callable[..., Path]) -> None:
    for family in ("llama", "llama_tied", "gpt2"):
        assert not open_skeleton(open_source(tiny_model(family))).flow.without_head


@pytest.mark.parametrize("family", ["llama", "llama_tied"])
def test_the_moments_of_the_heads_inputs_count_as_memory(
    family: str, tiny_model: Callable[..., Path]
) -> None:
    skeleton = open_skeleton(open_source(tiny_model(family)))
    view = next(view for view in skeleton.views if view.in_head)
    bare, solved = (
        _outside(skeleton, [view], {view.name: frozenset(needs)}, skeleton.dtype, {}, Batch())
        for needs in ((), ("gram",))
    )
    # The Gram matrix and its factor; columns under five ranges, and what they are rounded to.
    assert solved - bare == 2 * 4 * 64**2 + 2 * 4 * 5 * view.shape[0] * view.shape[1]
    outside = sum(rows * columns for rows, columns in (v.shape for v in skeleton.views if v.block is None))
    assert bare == outside * skeleton.dtype.itemsize + 4 * 4 * view.shape[0] * view.shape[1]
    assert _outside(skeleton, [], {}, skeleton.dtype, {}, Batch()) == 0
