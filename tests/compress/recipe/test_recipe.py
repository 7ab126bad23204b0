"""Recipes from files, names and plain data; settings put over them; every mistake named by its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from compress.errors import UserError
from compress.planning.methods import methods_of
from compress.recipe.recipe import Recipe, shipped

MINIMAL = {"name": "mine", "steps": [{"quantize": {"bits": 4}}]}


def two_steps() -> Recipe:
    step = {"quantize": {"bits": 4}, "solver": ["gptq", "coordinate_descent"]}
    return Recipe.parse({"name": "mine", "steps": [step, {**step, "targets": ["experts"]}]})


def parsed(**changes: Any) -> Recipe:
    return Recipe.parse({**MINIMAL, **changes})


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_is_called_as_its_file_and_says_when_to_use_it(name: str) -> None:
    recipe = Recipe.load(name)
    assert recipe.name == name
    assert recipe.when.endswith(".")
    for step in recipe.steps:
        methods_of(step, torch.bfloat16)


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_survives_its_own_plain_data(name: str) -> None:
    recipe = Recipe.load(name)
    assert Recipe.parse(recipe.model_dump(mode="json")) == recipe
    assert Recipe.parse(recipe.model_dump(mode="json", exclude_defaults=True)) == recipe


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(MINIMAL), encoding="utf-8")
    assert Recipe.load(path) == parsed()
    assert Recipe.load(str(path), {"quantize.bits": 3}).steps[0].quantize.bits == 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: [1", "is not YAML"),
        ("- 1\n- 2\n", "should be a mapping"),
        ("", "should be a mapping"),
        ("name: x\n", "needs 'steps'"),
        ("name: x\nsteps: []\n", "needs 'steps'"),
        ("steps: [{quantize: {bits: 4}}]\n", "the key 'name' is missing"),
        ("name: x\nsteps: [{quantise: {bits: 4}}]\n", "did you mean 'quantize'"),
        ("name: x\nstep: []\n", "did you mean 'steps'"),
        ("name: x\nsteps: [{quantize: {bits: 40}}]\n", "'steps.0.quantize.bits': .* not 40"),
        ("name: x\nsteps: [{quantize: {bits: 4, group: 64}}]\n", "did you mean 'group_size'"),
        (
            "name: x\nwithin_block: sequential\nsteps: [{quantize: {bits: 4}}]\n",
            "did you mean 'true_sequential'",
        ),
        ("name: x\nnarrow: {neurons: 0.5}\n", "did you mean 'width_pruning'"),
        ("name: x\ndrop: {blocks: 1}\n", "did you mean 'depth_pruning'"),
        ("name: x\nreshape: awq\nsteps: [{quantize: {bits: 4}}]\n", "did you mean 'transforms'"),
        ("name: x\nwidth_pruning: {neuron: 0.5}\n", "did you mean 'neurons'"),
        ("name: x\ncalibrate: {sample: 3}\nsteps: [{quantize: {bits: 4}}]\n", "did you mean 'samples'"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=match) as caught:
        Recipe.load(path)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(UserError, match="is not YAML"):
        Recipe.load(path)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("w4-gtpq", "no recipe or scheme called 'w4-gtpq'; did you mean 'w4-gptq'"),
        ("narrow75", "did you mean 'prune-width75'"),
        ("drop2", "did you mean 'prune-depth2'"),
        ("missing.yaml", "no recipe file missing.yaml"),
        ("some/where", "no recipe file some/where"),
    ],
)
def test_a_recipe_that_is_not_there(name: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        Recipe.load(name)


def test_a_setting_of_a_section_goes_to_the_steps_that_have_it() -> None:
    recipe = parsed(steps=[{"quantize": {"bits": 4}}, {"prune": {"sparsity": 0.5}, "targets": ["experts"]}])
    changed = recipe.with_settings({"quantize.bits": 3})
    assert changed.steps[0].quantize is not None
    assert changed.steps[0].quantize.bits == 3
    assert changed.steps[1] == recipe.steps[1]


def test_a_setting_that_no_step_has_goes_to_all() -> None:
    recipe = parsed(steps=[{"quantize": {"bits": 4}}, {"quantize": {"bits": 8}, "targets": ["experts"]}])
    changed = recipe.with_settings({"score": "magnitude"})
    assert [step.score.name for step in changed.steps if step.score] == ["magnitude", "magnitude"]


def test_a_setting_of_one_step_by_its_number() -> None:
    recipe = parsed(steps=[{"quantize": {"bits": 4}}, {"quantize": {"bits": 8}, "targets": ["experts"]}])
    changed = recipe.with_settings({"steps.1.quantize.bits": 6})
    assert [step.quantize.bits for step in changed.steps if step.quantize] == [4, 6]


def test_an_option_of_a_solver_that_was_named_alone() -> None:
    changed = parsed(steps=[{"quantize": {"bits": 4}, "solver": "gptq"}]).with_settings(
        {"solver.damping": 0.1}
    )
    assert changed.steps[0].solver[0].name == "gptq"
    assert dict(changed.steps[0].solver[0].options) == {"damping": 0.1}


def test_settings_of_the_recipe_itself() -> None:
    changed = parsed().with_settings({"calibrate.samples": 3, "true_sequential": True, "format": "dense"})
    assert (changed.calibrate.samples, changed.true_sequential, changed.format) == (3, True, "dense")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"quantise.bits": 3}, "a recipe has no 'quantise'; did you mean 'quantize'"),
        ({"steps.5.quantize.bits": 3}, "'5' is not the number of a step"),
        ({"steps.first.quantize.bits": 3}, "'first' is not the number of a step"),
        ({"solver.damping": 0.1}, "'damping' is not the number of a step"),
        ({"quantize.bits": "many"}, "'steps.0.quantize.bits'"),
        ({"quantize.group": 64}, "did you mean 'group_size'"),
        ({"format": "gguff"}, r"'format'.*, not 'gguff'; did you mean 'gguf'\?"),
        ({"bits": 3}, r"a recipe has no 'bits'; did you mean 'quantize.bits'\?"),
        ({"samples": 3}, r"did you mean 'calibrate.samples'\?"),
        ({"quantize.group_size": -3}, "'steps.0.quantize.group_size': input .* or equal to 1, not -3$"),
        ({"quantize.bits": "four"}, "'steps.0.quantize.bits': input should be a valid integer, not 'four'$"),
        ({"layers": "x"}, "'steps.0.layers': decoder blocks are numbers and ranges"),
        ({"quantize": 5}, "input should be a mapping, not 5"),
    ],
)
def test_a_setting_that_does_not_belong(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        two_steps().with_settings(settings)


def test_settings_leave_the_recipe_as_it_was() -> None:
    recipe = parsed()
    recipe.with_settings({"quantize.bits": 2})
    assert recipe == parsed()


def test_public_data_names_a_text_without_its_folder(tmp_path: Path) -> None:
    text = tmp_path / "secret-place" / "notes.txt"
    text.parent.mkdir()
    text.write_text("words", encoding="utf-8")
    recipe = parsed(calibrate={"data": str(text)})
    assert recipe.public()["calibrate"]["data"] == "notes.txt"
    assert "secret-place" not in str(recipe.public())
    assert recipe.calibrate.data == str(text)


def test_public_data_keeps_the_name_of_a_data_set() -> None:
    assert parsed(calibrate={"data": "wikitext"}).public()["calibrate"]["data"] == "wikitext"


@pytest.mark.parametrize("name", ["w4-gptq", "q4_k_m", "sparse50-awp", "prune-depth2"])
def test_embeddings_and_head_are_steps_behind_the_others(name: str) -> None:
    bare, recipe = Recipe.load(name), Recipe.load(name, {"embeddings": 8, "head.bits": 6})
    assert recipe.steps == bare.steps == bare.all_steps
    *same, embeddings, head = recipe.all_steps
    assert tuple(same) == recipe.steps
    assert (embeddings.targets, head.targets) == (("embeddings",), ("head",))
    assert embeddings.quantize is not None
    assert head.quantize is not None
    assert (embeddings.quantize.bits, head.quantize.bits) == (8, 6)
    assert [recipe.place_of(i) for i in range(len(recipe.all_steps))][-2:] == ["embeddings", "head"]
    assert Recipe.parse(recipe.model_dump(mode="json")) == recipe
    assert recipe.with_settings({"embeddings": None, "head": None}) == bare


def test_embeddings_alone_are_a_recipe() -> None:
    assert Recipe.parse({"name": "x", "embeddings": 4}).all_steps[0].targets == ("embeddings",)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"embeddings": {"bits": 8, "bit": 8}}, "unknown key 'embeddings.bit'; did you mean 'bits'"),
        ({"embedding": 8}, "did you mean 'embeddings'"),
        ({"head": 1}, "greater than or equal to 2"),
    ],
)
def test_a_mistake_in_the_grid_of_embeddings(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        Recipe.load("w8", settings)
