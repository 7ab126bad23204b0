"""Budgets for mixtures of experts: models with fewer experts are searched through, and judged by the whole model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import compress
from compress.allocate.amounts import Amount
from compress.allocate.candidates import DENSE
from compress.allocate.trial_weights import TrialWeights
from compress.checkpoint.source import open_source
from compress.checkpoint.writer import Writer
from compress.errors import UserError
from compress.pipeline import budget
from compress.pipeline.budget import measure
from compress.pipeline.budget_space import Space, fewer_experts, open_space
from compress.pipeline.budget_steps import compress_to_budget, plan_budget
from compress.pipeline.run import Result
from compress.prune import merge_experts
from compress.recipe.recipe import Recipe
from compress.system.progress import Silent

SMALL: dict[str, Any] = {"samples": 4, "length": 32, "trials": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("qwen3_moe", num_experts=8, num_experts_per_tok=2, moe_intermediate_size=64)


def figures(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "compress.json").read_text())["sensitivity"]["budget"]
    return found


def whole(model: Path) -> Space:
    return open_space(open_source(model), "native", Amount("bits", 16, "16 bits"))[0]


def test_a_budget_below_all_experts_takes_fewer(model: Path, tmp_path: Path) -> None:
    """The recipe says so, and makes the same bytes without a search."""
    planned = plan_budget(model, bits=8, runtime="native", **{k: SMALL[k] for k in ("samples", "length")})
    assert planned.experts == (6, 4)
    size = whole(model).smallest - 20_000
    assert planned.smallest < size
    out = tmp_path / "out"
    result = compress_to_budget(model, out, budget=size, runtime="native", **SMALL)
    assert isinstance(result, Result)
    assert sum(file.stat().st_size for file in out.glob("*.safetensors")) <= size
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert recipe["width_pruning"]["experts"] in (0.75, 0.5)
    compress.verify(out, model)
    again = compress.compress(model, out / "recipe.yaml", tmp_path / "again", device="cpu")
    for file in again.out.glob("*.safetensors"):
        assert file.read_bytes() == (out / file.name).read_bytes()


def test_every_share_is_judged_against_the_whole_model(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compress_to_budget(model, out, bits=4.5, runtime="native", **SMALL)
    found = figures(out)
    tried = found["experts_tried"]
    models = [(one["experts"], one["by"]) for one in tried]
    assert models == [(0.75, "reap"), (0.75, "merge"), (0.5, "reap"), (0.5, "merge")]
    # Another model than the whole one: none of them is at no distance from it.
    assert all(one["removal_kl"] > 0 for one in tried)
    assert found["measured_kl"] <= min(one.get("measured_kl", float("inf")) for one in tried)
    for pruned, merged in (tried[:2], tried[2:]):  # the worse of both is not searched
        worse = max(pruned, merged, key=lambda one: one["removal_kl"])
        assert pruned["removal_kl"] != merged["removal_kl"]
        assert "measured_kl" not in worse
    recipe = Recipe.load(out / "recipe.yaml")
    kept = 1.0 if recipe.width_pruning is None else recipe.width_pruning.experts
    best = min(
        (one for one in tried if "measured_kl" in one), key=lambda one: one["measured_kl"], default=None
    )
    if best is not None and kept == best["experts"]:
        assert found["measured_kl"] == best["measured_kl"]


def test_fewer_experts_may_be_all_that_a_budget_asks_for(model: Path) -> None:
    """Where the model with fewer of them fits as it is, no weight of it is compressed."""
    _, routed, fewer = next(fewer_experts(whole(model)))
    allocation = {unit.name: DENSE for unit in fewer.units}
    recipe = fewer.recipe(allocation, "all dense", "", {"samples": 4, "length": 32})
    assert recipe.width_pruning is not None
    assert (recipe.width_pruning.experts, recipe.steps) == (0.75, ())
    planned = compress.plan(model, recipe)
    assert routed.kept == 6
    assert sum(shard.nbytes for shard in planned.shards) < whole(model).size.nbytes
    with pytest.raises(ValueError, match="compresses nothing"):
        whole(model).recipe(allocation, "all dense", "", {})


def test_too_small_a_budget_names_that_of_the_fewest_experts(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\((\d+) bytes\); give at least that") as error:
        compress_to_budget(model, tmp_path / "out", budget=1000, runtime="native", **SMALL)
    named = int(str(error.value).split("(")[1].split(" ")[0])
    assert named < whole(model).smallest


def test_a_dense_model_has_no_fewer_experts(tiny_model: Callable[..., Path]) -> None:
    assert not list(fewer_experts(whole(tiny_model("llama"))))


def test_experts_that_cannot_be_scored_are_told_of_and_all_stay(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.prune.expert_saliency._is_routing", lambda _: False)
    notes: list[str] = []
    listener = Silent()
    monkeypatch.setattr(listener, "note", notes.append)
    compress_to_budget(model, tmp_path / "out", bits=8, runtime="native", progress=listener, **SMALL)
    assert any(note.startswith("models with fewer experts are not searched: ") for note in notes)
    assert Recipe.load(tmp_path / "out" / "recipe.yaml").width_pruning is None


@pytest.fixture(scope="module")
def mixtral(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("mixtral", initializer_range=0.1)


@pytest.mark.parametrize("better", ["reap", "merge"])
def test_of_pruned_and_merged_experts_the_better_ones_are_taken(
    mixtral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, better: str
) -> None:
    """The recipe says which, and makes the same bytes without a search."""
    monkeypatch.setattr(
        "compress.pipeline.budget_search.divergence_of",
        lambda space, *_: 0.0 if space.experts_by == better else 9.0,
    )
    searched = []
    monkeypatch.setattr(
        "compress.pipeline.budget_search.measure",
        lambda space, *rest: searched.append(space.experts_by) or measure(space, *rest),
    )
    out = tmp_path / "out"
    size = whole(mixtral).smallest - 2000
    compress_to_budget(mixtral, out, budget=size, runtime="native", **SMALL)
    assert set(searched) == {better}
    recipe = Recipe.load(out / "recipe.yaml")
    assert recipe.width_pruning is not None
    assert recipe.width_pruning.experts_by == better
    again = compress.compress(mixtral, out / "recipe.yaml", tmp_path / "again", device="cpu").out
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_experts_that_cannot_be_merged_are_told_of_and_pruned(
    mixtral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.linalg.matching.find_spec", lambda _: None)
    notes: list[str] = []
    listener = Silent()
    monkeypatch.setattr(listener, "note", notes.append)
    size = whole(mixtral).smallest - 2000
    compress_to_budget(mixtral, tmp_path / "out", budget=size, runtime="native", progress=listener, **SMALL)
    assert any(note.startswith("models with merged experts are not searched: merging") for note in notes)
    assert {one["by"] for one in figures(tmp_path / "out")["experts_tried"]} == {"reap"}


def test_a_search_killed_again_and_again_gives_the_same_recipe_and_bytes(
    mixtral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the files of merged experts, the blocks of trial weights, the figures, and the blocks of the run."""
    budget_of = {"budget": whole(mixtral).smallest - 2000, "runtime": "native", **SMALL}
    compress_to_budget(mixtral, tmp_path / "whole", **budget_of)
    moments = [
        (merge_experts, "save_file", 2),
        (budget, "_write", 2),
        (TrialWeights, "save", 2),
        (budget, "_write", 1),
        (TrialWeights, "save", 2),
        (budget, "_write", 2),
        (Writer, "finish_block", 2),
    ]
    out = tmp_path / "out"
    for place, name, count in moments:
        with monkeypatch.context() as patch:
            patch.setattr(place, name, killed_at(count, getattr(place, name)))
            with pytest.raises(RuntimeError, match="killed"):
                compress_to_budget(mixtral, out, **budget_of)
        assert not out.exists()
    compress_to_budget(mixtral, out, **budget_of)
    for name in ("recipe.yaml", "model.safetensors", "config.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert figures(out) == figures(tmp_path / "whole")


def killed_at(count: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which fails before its work when it is called for the nth time."""
    calls = []

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        if len(calls) == count:
            raise RuntimeError("killed")
        return function(*arguments, **named)

    return counted
