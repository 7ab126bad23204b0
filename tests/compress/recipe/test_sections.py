"""What each section of a recipe takes, its defaults, and what it refuses with which words."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from compress.recipe.grids import Quantize
from compress.recipe.section import Section
from compress.recipe.sections import Calibrate, DepthPruning, LowRank, Prune, Step, WidthPruning


def refused(section: type[Section], match: str, **data: Any) -> None:
    with pytest.raises(ValidationError, match=match):
        section(**data)


@pytest.mark.parametrize("section", [Calibrate, Quantize, Prune, LowRank, DepthPruning, WidthPruning, Step])
def test_an_unknown_key_is_refused(section: type[Section]) -> None:
    with pytest.raises(ValidationError) as caught:
        section.model_validate({"unheard_of": 1})
    assert "extra_forbidden" in {error["type"] for error in caught.value.errors()}


def test_sections_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Calibrate().samples = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ({}, "either 'sparsity' or 'pattern'"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "either 'sparsity' or 'pattern'"),
        ({"pattern": "4:4"}, "needs n < m"),
        ({"pattern": "2:4", "scope": "layer"}, "go with 'sparsity'"),
        ({"pattern": "2:4", "allocate": "owl"}, "go with 'sparsity'"),
        ({"sparsity": 0.5, "block": [4, 4], "allocate": "fisher"}, "one share for all"),
        ({"sparsity": 0.5, "block": [4, 4], "scope": "global"}, "one share for all"),
        ({"sparsity": 0.5, "scope": "global", "allocate": "owl"}, "leave 'allocate' out"),
    ],
)
def test_pruning_that_contradicts_itself(data: dict[str, Any], match: str) -> None:
    refused(Prune, match, **data)


@pytest.mark.parametrize("value", [0, 1, -0.5, 1.5])
def test_a_sparsity_of_all_or_nothing(value: float) -> None:
    with pytest.raises(ValidationError):
        Prune(sparsity=value)


@pytest.mark.parametrize("pattern", ["2-4", "0:4", "2:", ":4", "2:4:8", "a:b"])
def test_a_pattern_that_is_none(pattern: str) -> None:
    with pytest.raises(ValidationError):
        Prune(pattern=pattern)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ({}, "either 'ratio' or 'rank'"),
        ({"ratio": 0.5, "rank": 8}, "either 'ratio' or 'rank'"),
        ({"rank": 8, "allocate": "fisher"}, "spreads a 'ratio'"),
        ({"ratio": 0.5, "share": True}, "other than 'uniform'"),
        ({"rank": 8, "columns": 0.1}, "shares a 'ratio'"),
    ],
)
def test_low_rank_that_contradicts_itself(data: dict[str, Any], match: str) -> None:
    refused(LowRank, match, **data)


def test_width_pruning_needs_a_share() -> None:
    refused(WidthPruning, "'neurons', 'groups', 'experts' or several of them")
    refused(WidthPruning, "'experts_by' says which 'experts' stay", groups=0.5, experts_by="frequency")
    refused(WidthPruning, "give their share", groups=0.5, allocate="fisher")
    assert WidthPruning(neurons=0.5).groups is None


def test_depth_pruning_leaves_out_one_block_at_least() -> None:
    with pytest.raises(ValidationError):
        DepthPruning(blocks=0)
    assert DepthPruning(blocks=2).by == "loss"


@pytest.mark.parametrize(
    ("written", "names", "options"),
    [
        ("gptq", ["gptq"], [{}]),
        ({"name": "gptq", "damping": 0.1}, ["gptq"], [{"damping": 0.1}]),
        (["gptq", {"name": "refit", "steps": 3}], ["gptq", "refit"], [{}, {"steps": 3}]),
        ([{"name": "gptq", "options": {"damping": 0.1}}], ["gptq"], [{"damping": 0.1}]),
    ],
)
def test_ways_to_name_solvers(written: Any, names: list[str], options: list[dict[str, Any]]) -> None:
    step = Step.model_validate({"solver": written})
    assert [method.name for method in step.solver] == names
    assert [dict(method.options) for method in step.solver] == options


def test_a_step_rounds_every_linear_layer_to_nearest_unless_told_otherwise() -> None:
    step = Step()
    assert step.targets == ("linear", "experts")
    assert [method.name for method in step.solver] == ["nearest"]
    assert step.score is None
    assert step.true_input_target is False
