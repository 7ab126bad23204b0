"""`group_size: auto`: each weight by its inputs, experts and zero points together."""

from __future__ import annotations

from typing import Any

import pytest

from compress.models.views import WeightView
from compress.planning.group_sizes import group_sizes, with_group_size
from compress.recipe.recipe import Recipe


def view(name: str, columns: int, kind: Any = "linear") -> WeightView:
    return WeightView(name, f"{name}.weight", kind, 0, (64, columns), None, (f"{name}.weight",))


def sizes(*views: WeightView, **quantize: Any) -> dict[str, Any]:
    settings = {"bits": 4, "group_size": "auto", **quantize}
    recipe = Recipe.parse({"name": "x", "steps": [{"quantize": settings}]})
    return dict(group_sizes([(one, 0) for one in views], recipe))


@pytest.mark.parametrize(
    ("columns", "size"),
    [(512, 128), (576, 64), (1536, 128), (96, 32), (160, 32), (48, "channel"), (100, "channel")],
)
def test_the_largest_that_divides(columns: int, size: Any) -> None:
    assert sizes(view("a", columns)) == {"a": size}


def test_weights_of_symmetric_grids_have_their_own() -> None:
    assert sizes(view("a", 512), view("b", 576), view("c", 48)) == {"a": 128, "b": 64, "c": "channel"}


def test_zero_points_share_one_size_where_one_divides_all() -> None:
    assert sizes(view("a", 512), view("b", 576), symmetric=False) == {"a": 64, "b": 64}
    assert sizes(view("a", 512), view("b", 48), symmetric=False) == {"a": 128, "b": "channel"}


def test_experts_share_one_size() -> None:
    assert sizes(view("a", 512, "expert"), view("b", 96, "expert"), view("c", 512)) == {
        "a": 32,
        "b": 32,
        "c": 128,
    }


def test_nf4_has_blocks_of_64_and_32() -> None:
    assert sizes(view("a", 512), view("b", 96), type="nf4") == {"a": 64, "b": 32}


def test_a_size_that_is_given_stays() -> None:
    recipe = Recipe.parse({"name": "x", "steps": [{"quantize": {"bits": 4, "group_size": 16}}]})
    assert group_sizes([(view("a", 512), 0)], recipe) == {}
    assert with_group_size(recipe.steps[0], "a", {}) is recipe.steps[0]


def test_a_step_for_one_weight() -> None:
    recipe = Recipe.parse({"name": "x", "steps": [{"quantize": {"bits": 3, "group_size": "auto"}}]})
    step = with_group_size(recipe.steps[0], "a", {"a": 64})
    assert step.quantize is not None
    assert (step.quantize.group_size, step.quantize.bits) == (64, 3)
