"""A budget in the place of a recipe, from the command to the finished folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import compress
from compress.calibrate.capture import CannotStream
from compress.calibrate.stream import BlockStream
from compress.errors import UserError
from compress.pipeline import budget
from compress.pipeline import budget_steps as module
from compress.pipeline.budget_steps import Copied, compress_to_budget, search_folder
from compress.pipeline.run import Result

SMALL: dict[str, Any] = {"samples": 4, "length": 32, "trials": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", initializer_range=0.1)


def weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def run(model: Path, out: Path, **options: Any) -> Result:
    result = compress_to_budget(model, out, **{**SMALL, **options})
    assert isinstance(result, Result)
    return result


def test_the_weight_files_fill_the_budget_and_the_recipe_makes_them_again(
    model: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "found.yaml"
    # Half a per cent of a tiny model is less than a header's line: the share is that of the tensors' steps.
    result = run(model, tmp_path / "out", bits=5.5, runtime="native", save_recipe=recipe)
    budget = int(5.5 * result.plan.source_numel / 8)
    assert 0.97 * budget < weight_bytes(tmp_path / "out") <= budget
    assert weight_bytes(tmp_path / "out") == result.plan.total_bytes
    assert recipe.read_text() == (tmp_path / "out" / "recipe.yaml").read_text()
    data = yaml.safe_load(recipe.read_text())
    assert (data["format"], data["calibrate"]) == ("native", {"samples": 4, "length": 32})
    again = compress.compress(model, recipe, tmp_path / "again", device="cpu")
    for file in again.out.glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()
    assert not search_folder(tmp_path / "out").exists()
    compress.verify(tmp_path / "out", model)


def test_the_report_says_what_every_unit_got(model: Path, tmp_path: Path) -> None:
    result = run(model, tmp_path / "out", ratio=0.45, runtime="vllm")
    assert result.plan.format == "compressed-tensors"
    report = json.loads((tmp_path / "out" / "compress.json").read_text())
    figures = report["sensitivity"]["budget"]
    assert figures["runtime"] == "vllm"
    assert figures["allocations_measured"] == 1
    assert figures["measured_kl"] <= figures["measured_kl_before_refinement"]
    assert set(figures["allocation"]) >= {"model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"}


def test_an_interrupted_run_goes_on_without_a_second_search(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "run", fails)
        run(model, tmp_path / "out", bits=5.0, runtime="native")
    assert list(search_folder(tmp_path / "out").glob("allocation-*.json"))
    with pytest.raises(UserError, match="what differs: .*seed"):
        run(model, tmp_path / "out", bits=5.0, runtime="native", seed=1)

    def not_again(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("compress.pipeline.budget.refine", not_again)
    assert run(model, tmp_path / "out", bits=5.0, runtime="native").out.is_dir()


def test_a_budget_above_the_model_copies_it_and_says_so(model: Path, tmp_path: Path) -> None:
    result = compress_to_budget(model, tmp_path / "out", budget="1GB", runtime="native")
    assert isinstance(result, Copied)
    assert "copied unchanged" in result.note
    for file in model.iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_a_copy_never_replaces_its_source(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(tiny_model("llama", initializer_range=0.1), own)
    before = {file.name: file.read_bytes() for file in own.iterdir()}
    for out in (own, own / "inside", tmp_path):
        with pytest.raises(UserError):
            compress_to_budget(own, out, budget="1GB", runtime="native", overwrite=True)
    assert {file.name: file.read_bytes() for file in own.iterdir()} == before


def test_a_budget_below_the_smallest_names_it(model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"smallest model for native, which takes .* \((\d+) bytes\)"
    ) as error:
        run(model, tmp_path / "out", budget="1kB", runtime="native")
    smallest = int(str(error.value).partition("(")[2].partition(" bytes")[0])
    with pytest.raises(UserError, match="below the smallest"):
        run(model, tmp_path / "out", budget=smallest - 1, runtime="native")
    assert not (tmp_path / "out").exists()


def test_the_smallest_budget_that_is_named_can_be_met(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        run(model, tmp_path / "out", budget="1kB", runtime="native")
    smallest = int(str(error.value).partition("(")[2].partition(" bytes")[0])
    result = run(model, tmp_path / "out", budget=smallest, runtime="native", trials=0)
    assert result.plan.total_bytes <= smallest


def test_auto_goes_to_the_runtime_that_can_meet_the_budget(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    # Nearly all of this model is an embedding that transformers cannot read packed.
    tied = tiny_model("llama", tie_word_embeddings=True, num_hidden_layers=1, intermediate_size=32)
    with pytest.raises(UserError, match="--runtime native, which goes down to"):
        run(tied, tmp_path / "out", bits=4.5, runtime="transformers")
    assert run(tied, tmp_path / "out", bits=4.5).plan.format == "native"


def test_a_model_that_cannot_be_run_by_block_is_refused_before_its_weights_are_solved(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: Any) -> None:
        raise CannotStream("its blocks share weights")

    def not_reached(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(BlockStream, "prepare", cannot)
    monkeypatch.setattr("compress.pipeline.budget.candidate_losses", not_reached)
    with pytest.raises(UserError, match="cannot be run block by block.*name a recipe with -r"):
        run(model, tmp_path / "out", bits=5.0, runtime="native")


def test_other_arguments_are_checked_before_any_work(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Give a budget"):
        run(model, tmp_path / "out")
    with pytest.raises(UserError, match="--save-recipe"):
        run(model, tmp_path / "out", bits=4.0, save_recipe=tmp_path / "none" / "found.yaml")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        run(model, tmp_path / "there", bits=5.0, runtime="native")
    with pytest.raises(UserError, match="exists"):
        compress_to_budget(model, tmp_path / "there", budget="1GB")
    assert (tmp_path / "there" / "x").read_text() == "mine"


def test_a_text_that_is_too_short_for_the_run_is_refused_before_the_search(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Enough words for the windows of the search.")
    monkeypatch.setattr(budget, "_LENGTH", 16)  # the search looks at shorter windows than the run
    monkeypatch.setattr(
        "compress.pipeline.budget_search.measure", lambda *_, **__: pytest.fail("the model was run")
    )
    options: dict[str, Any] = {"bits": 5.5, "runtime": "native", "data": str(short), "length": 128}
    with pytest.raises(UserError, match="fewer than one sequence of 128"):
        run(model, tmp_path / "out", **options)
    with pytest.raises(UserError, match="fewer than one sequence of 128"):
        module.plan_budget(model, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]
