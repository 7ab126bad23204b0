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
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.pipeline.budget_space import Space, fewer_experts, open_space
from compress.pipeline.budget_steps import compress_to_budget, plan_budget
from compress.pipeline.run import Result
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
    assert [one["experts"] for one in tried] == [0.75, 0.5]
    # Another model than the whole one: none of them is at no distance from it.
    assert all(one["removal_kl"] > 0 for one in tried)
    assert found["measured_kl"] <= min(one.get("measured_kl", float("inf")) for one in tried)
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
