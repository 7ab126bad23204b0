"""Which weights a step means: class words, names, patterns, and what it ignores."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.assets import EMBEDDED
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.skeleton import open_skeleton
from compress.models.views import Kind, WeightView
from compress.planning.targets import kinds, matches, select
from compress.recipe.sections import Step


def view(name: str, kind: Kind = "linear", block: int | None = 0, expert: int | None = None) -> WeightView:
    return WeightView(name, f"{name}.weight", kind, block, (8, 8), expert, (f"{name}.weight",))


VIEWS = [
    view("embed", "embedding", None),
    view("layers.0.q_proj"),
    view("layers.0.conv", "conv1d"),
    view("layers.1.q_proj", block=1),
    view("layers.1.experts.0.up", "expert", 1, 0),
    view("layers.1.experts.1.up", "expert", 1, 1),
    view("output", "head", None),
]


def step(**settings: Any) -> Step:
    return Step.model_validate({"quantize": {"bits": 4}, **settings})


def names(**settings: Any) -> set[str]:
    return {view.name for view in select(step(**settings), VIEWS, "steps.0")[0]}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["linear"], {"layers.0.q_proj", "layers.0.conv", "layers.1.q_proj"}),
        (["experts"], {"layers.1.experts.0.up", "layers.1.experts.1.up"}),
        (["embeddings"], {"embed"}),
        (["lm_head"], {"output"}),
        (["layers.0.q_proj"], {"layers.0.q_proj"}),
        ([r"re:layers\.1\."], {"layers.1.q_proj", "layers.1.experts.0.up", "layers.1.experts.1.up"}),
        (["q_proj"], {"layers.0.q_proj", "layers.1.q_proj"}),
        (["0.q_proj"], {"layers.0.q_proj"}),
        (["experts.0.up"], {"layers.1.experts.0.up"}),
        (["*.experts.*"], {"layers.1.experts.0.up", "layers.1.experts.1.up"}),
        (["*_proj"], {"layers.0.q_proj", "layers.1.q_proj"}),
        (["experts.?.up"], {"layers.1.experts.0.up", "layers.1.experts.1.up"}),
        (["re:.*q_proj", "embeddings"], {"layers.0.q_proj", "layers.1.q_proj", "embed"}),
    ],
)
def test_patterns(patterns: list[str], expected: set[str]) -> None:
    assert names(targets=patterns) == expected


def test_the_end_of_a_name_means_decoder_blocks_alone() -> None:
    beside = view("tower.q_proj", "vision", None)
    assert not matches(beside, "q_proj")
    assert matches(beside, "tower.q_proj")
    assert matches(beside, "*.q_proj")


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("0", {0}),
        (-1, {3}),
        ("0-1,-1", {0, 1, 3}),
        ("-2--1", {2, 3}),
        ([0, -1], {0, 3}),
        ("1-3", {1, 2, 3}),
    ],
)
def test_layers_take_the_targets_in_these_blocks(layers: Any, expected: set[int]) -> None:
    views = [view("embed", "embedding", None), *(view(f"layers.{i}.q_proj", block=i) for i in range(4))]
    chosen, _ = select(step(targets=["linear", "embeddings"], layers=layers), views, "steps.0")
    assert {one.block for one in chosen} == expected


@pytest.mark.parametrize("layers", ["4", "-5", "3-1", "0-4"])
def test_a_block_that_the_model_does_not_have_is_a_mistake(layers: str) -> None:
    views = [view(f"layers.{i}.q_proj", block=i) for i in range(4)]
    with pytest.raises(UserError, match=r"steps.0.layers: the model has blocks 0 to 3"):
        select(step(layers=layers), views, "steps.0")


@pytest.mark.parametrize("layers", ["", "first", "0-", 0.5, True, [], "1..3"])
def test_what_are_no_layers_is_refused_with_an_example(layers: Any) -> None:
    with pytest.raises(ValueError, match="0-3,-1"):
        step(layers=layers)


def test_targets_may_be_one_string() -> None:
    assert names(targets="q_proj, embeddings") == names(targets=["q_proj", "embeddings"])
    assert step(targets="re:a,b").targets == ("re:a,b",)


def test_the_shipped_example_by_role() -> None:
    path = Path(__file__).resolve().parents[3] / "examples" / "recipes" / "ends-at-8-bits.yaml"
    planned = compress.plan(EMBEDDED, path)
    bits = {block: {w.layout.bits for w in planned.block(block)} for block in range(6)}  # type: ignore[attr-defined]
    assert bits == {0: {8}, 5: {8}} | {block: {4} for block in range(1, 5)}


def test_a_pattern_is_anchored_at_the_start_alone() -> None:
    assert matches(VIEWS[1], "re:layers")
    assert not matches(VIEWS[1], "re:q_proj")
    assert not matches(VIEWS[1], "layers.0")


def test_ignored_weights_are_left_out_and_named_with_their_pattern() -> None:
    chosen, ignored = select(step(targets=["linear", "experts"], ignore=["re:layers.1.*"]), VIEWS, "steps.0")
    assert [view.name for view in chosen] == ["layers.0.q_proj", "layers.0.conv"]
    assert ignored == dict.fromkeys(
        ("layers.1.q_proj", "layers.1.experts.0.up", "layers.1.experts.1.up"), "re:layers.1.*"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ["re:q_proj"]}, "steps.0.targets: 're:q_proj' matches no weight, anchored"),
        ({"targets": ["layers.0.q_prj"]}, "did you mean 'layers.0.q_proj'"),
        ({"targets": ["q_prj"]}, "did you mean 'q_proj'"),
        ({"targets": ["*.q_prj"]}, "did you mean '*.q_proj'?"),
        ({"targets": ["re:.*0.q_prj"]}, "did you mean 're:.*0.q_proj'?"),
        ({"targets": ["*.nothing.*"]}, "'*.nothing.*' matches no weight; names look like"),
        ({"targets": ["expert"]}, "'re:.*expert' matches 2 weights"),
        ({"targets": ["re:proj"]}, "'re:.*proj' matches 2 weights"),
        ({"targets": ["*.mlp.*"]}, "and 're:' takes a regular expression"),
        ({"targets": ["re:["]}, "is not a regular expression"),
        ({"ignore": ["re:router"]}, "steps.0.ignore: 're:router' matches no weight"),
    ],
)
def test_a_name_that_means_nothing_is_a_mistake(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        select(step(**settings), VIEWS, "steps.0")


def test_a_class_word_and_an_ignored_head_may_find_nothing() -> None:
    some = VIEWS[1:4]
    assert select(step(targets=["experts"]), some, "steps.0") == ([], {})
    assert len(select(step(targets=["linear"], ignore=["lm_head"]), some, "steps.0")[0]) == 3
    with pytest.raises(UserError, match="tied"):
        select(step(targets=["lm_head"]), some, "steps.0")


def test_what_there_is_in_words() -> None:
    assert (
        kinds(VIEWS)
        == "it has 1 of kind embedding, 2 of kind linear, 1 of kind conv1d, 2 of kind expert, 1 of kind head"
    )
    assert kinds([]) == "it has none to compress"


@pytest.mark.parametrize(("family", "kind"), [("llama", "head"), ("llama_tied", "embedding")])
def test_head_means_what_the_output_head_multiplies_by(
    family: str, kind: str, tiny_model: Callable[..., Path]
) -> None:
    views = open_skeleton(open_source(tiny_model(family))).views
    (found,) = (view for view in views if matches(view, "head"))
    assert (found.kind, found.in_head) == (kind, True)
    embeddings = [view for view in views if matches(view, "embeddings")]
    assert [view.in_head for view in embeddings] == [family == "llama_tied"]
