"""Units of every runtime and what they can become."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from compress.allocate.allocation_recipe import allocation_recipe
from compress.allocate.candidates import DENSE
from compress.allocate.units import Unit, find_units
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.skeleton import open_skeleton
from compress.planning.make import facts_of, make_plan
from compress.recipe.recipe import Recipe
from compress.recipe.runtimes import RUNTIMES, find_runtime


def units_of(folder: Path, runtime: str) -> tuple[Unit, ...]:
    skeleton = open_skeleton(open_source(folder))
    return find_units(skeleton, RUNTIMES[runtime], facts_of(skeleton))


def members(units: tuple[Unit, ...]) -> list[list[str]]:
    return [[view.name.rpartition(".")[2] for view in unit.views] for unit in units if unit.block == 0]


def test_servers_that_fuse_get_one_choice_for_what_they_fuse(tiny_model: Callable[..., Path]) -> None:
    folder = tiny_model("llama")
    assert members(units_of(folder, "vllm"))[:2] == [["q_proj", "k_proj", "v_proj"], ["o_proj"]]
    assert members(units_of(folder, "native"))[:2] == [["q_proj"], ["k_proj"]]


@pytest.mark.parametrize("runtime", sorted(RUNTIMES))
def test_choices_rise_in_bytes_and_end_with_the_weights_as_they_are(
    tiny_model: Callable[..., Path], runtime: str
) -> None:
    units = units_of(tiny_model("llama"), runtime)
    inside = [unit for unit in units if unit.block is not None]
    assert inside
    for unit in inside:
        sizes = [choice.nbytes for choice in unit.choices]
        assert sizes == sorted(sizes)
        assert unit.choices[-1].label == DENSE
        assert len(unit.choices) > 3
        assert len({choice.label for choice in unit.choices}) == len(unit.choices)


@pytest.mark.parametrize("runtime", ["transformers", "native", "mlx"])
def test_bytes_are_those_of_the_plan(tiny_model: Callable[..., Path], runtime: str) -> None:
    folder = tiny_model("llama")
    skeleton = open_skeleton(open_source(folder))
    unit = next(unit for unit in units_of(folder, runtime) if unit.block == 0)
    choice = unit.choices[1]
    assert choice.candidate is not None
    step = choice.candidate.step([view.name for view in unit.views], data=False)
    recipe = Recipe.parse(
        {"name": "one", "steps": [step], "format": RUNTIMES[runtime].format, "allow_split_groups": True}
    )
    planned = make_plan(skeleton, recipe)
    assert sum(weight.nbytes for weight in planned.weights) == choice.nbytes


def test_experts_of_a_block_are_one_unit_and_for_loaders_all_of_a_model(
    tiny_model: Callable[..., Path],
) -> None:
    folder = tiny_model("mixtral")
    native = [unit for unit in units_of(folder, "native") if unit.views[0].kind == "expert"]
    assert [unit.block for unit in native] == [0, 1]
    (together,) = [unit for unit in units_of(folder, "vllm") if unit.views[0].kind == "expert"]
    assert {view.block for view in together.views} == {0, 1}
    # transformers reads no dense experts beside packed weights.
    assert DENSE not in {choice.label for choice in together.choices}


def test_routers_are_in_no_unit(tiny_model: Callable[..., Path]) -> None:
    units = units_of(tiny_model("mixtral"), "native")
    assert not [view.name for unit in units for view in unit.views if view.router]


def test_a_tied_embedding_stays_dense_where_loaders_cannot_share_it(tiny_model: Callable[..., Path]) -> None:
    folder = tiny_model("llama", tie_word_embeddings=True)
    outside = {
        runtime: next(u for u in units_of(folder, runtime) if u.block is None)
        for runtime in ("vllm", "native")
    }
    assert [choice.label for choice in outside["vllm"].choices] == [DENSE]
    assert "tied" in outside["vllm"].refused
    assert len(outside["native"].choices) > 3


def test_a_runtime_that_is_none_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'vllm'"):
        find_runtime("vlm")


@pytest.mark.parametrize("runtime", ["transformers", "native", "llama.cpp"])
def test_recipes_are_solved_towards_the_dense_outputs_and_trials_are_not(
    tiny_model: Callable[..., Path], runtime: str
) -> None:
    units = units_of(tiny_model("llama"), runtime)
    inside = [unit for unit in units if unit.block is not None]
    least = {unit.name: unit.choices[0] for unit in inside}
    allocation = {unit.name: unit.choices[0 if unit.block is not None else -1].label for unit in units}
    recipe = allocation_recipe(
        units,
        allocation,
        RUNTIMES[runtime],
        name="least",
        when="",
        calibrate={},
        views=[view for unit in units for view in unit.views],
    )
    assert recipe is not None
    assert recipe.true_sequential
    assert all(step.true_input_target for step in recipe.steps)
    for choice in least.values():
        assert choice.candidate is not None
        assert "true_input_target" not in choice.candidate.step([], data=True, trial=True)
