"""Calibration windows are cut to what the model takes; tokens of another model's tokenizer are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import compress
from benchmarks.zoo.models import write_model
from compress.assets import embedded_model
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.skeleton import open_skeleton
from compress.pipeline.calibration import draw_corpus, fit_recipe
from compress.recipe.recipe import Recipe

RECIPE = {"calibrate.samples": 2, "calibrate.length": 2048}


def skeleton_with(folder: Path, **changes: object):
    shutil.copytree(embedded_model(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return open_skeleton(open_source(folder))


def test_windows_are_no_longer_than_the_models_positions(tmp_path: Path) -> None:
    skeleton = skeleton_with(tmp_path / "model", max_position_embeddings=96)
    recipe, note = fit_recipe(Recipe.load("w4-gptq", RECIPE), skeleton)
    assert recipe.calibrate.length == 96
    assert "instead of 2048" in note
    corpus = draw_corpus(skeleton, recipe, 0, note)
    assert corpus.tokens.shape == (2, 96)
    assert corpus.note == note
    assert corpus.bos
    assert corpus.tokens[:, 0].tolist() == [skeleton.model.config.bos_token_id] * 2
    assert fit_recipe(recipe, skeleton) == (recipe, "")


@pytest.mark.parametrize("name", ["kmeans", "sensitivity"])
def test_a_sampler_chooses_among_more_windows(tmp_path: Path, name: str) -> None:
    skeleton = open_skeleton(open_source(embedded_model()))
    settings = {"calibrate.samples": 6, "calibrate.length": 24}
    plain, chosen = (
        draw_corpus(skeleton, Recipe.load("w4-gptq", {**settings, **more}), 3)
        for more in ({"calibrate.samples": 24}, {"calibrate.sampler": {"name": name, "oversample": 4}})
    )
    assert chosen.tokens.shape == (6, 24)
    assert chosen.tokens.dtype == plain.tokens.dtype
    places = [(plain.tokens == window).all(1).nonzero().flatten().tolist() for window in chosen.tokens]
    assert all(places)
    assert len({place[0] for place in places}) == 6
    assert [place[0] for place in places] != [0, 1, 2, 3, 4, 5]


def test_a_sampler_that_chooses_nothing_is_refused_in_the_plan() -> None:
    skeleton = open_skeleton(open_source(embedded_model()))
    with pytest.raises(UserError, match="sampler 'fresh' says in which order training reads"):
        fit_recipe(Recipe.load("w4-gptq", {"calibrate.sampler": "fresh"}), skeleton)
    with pytest.raises(UserError, match="did you mean 'kmeans'"):
        fit_recipe(Recipe.load("w4-gptq", {"calibrate.sampler": "kmean"}), skeleton)


def test_tokens_beyond_the_embedding_are_refused(tmp_path: Path) -> None:
    skeleton = skeleton_with(tmp_path / "model")
    (tmp_path / "ids.jsonl").write_text(json.dumps([4096] * 64))
    recipe = Recipe.load(
        "w4-gptq",
        {"calibrate.data": str(tmp_path / "ids.jsonl"), "calibrate.samples": 1, "calibrate.length": 8},
    )
    with pytest.raises(UserError, match="token id 4096, but the model's embedding has only 4096 rows"):
        draw_corpus(skeleton, recipe, 0)


def test_code_that_changes_its_weights_takes_recipes_without_data(tmp_path: Path) -> None:
    write_model("rwkv", tmp_path / "rwkv")
    assert compress.plan(tmp_path / "rwkv", "w4-rtn").format == "compressed-tensors"
    for recipe in ("w4-gptq", "sparse50-awp"):
        with pytest.raises(UserError, match=r"changes rwkv.*in place.*choose a recipe without data"):
            compress.plan(tmp_path / "rwkv", recipe)
    pruning = Recipe.parse({"name": "shorter", "depth_pruning": {"blocks": 1}})
    with pytest.raises(UserError, match="in place"):
        compress.plan(tmp_path / "rwkv", pruning)


@pytest.mark.parametrize("recipe", ["sparse50-awp", "depth", "width"])
def test_passes_that_read_text_alone_refuse_images_in_the_plan(tmp_path: Path, recipe: str) -> None:
    data = tmp_path / "images.jsonl"
    content = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What is it?"}]
    data.write_text(json.dumps({"messages": [{"role": "user", "content": content}]}) + "\n")
    known: dict[str, Any] = {
        "depth": {"name": "x", "depth_pruning": {"blocks": 1}},
        "width": {"name": "x", "width_pruning": {"neurons": 0.5}},
    }
    wanted = Recipe.parse(known[recipe]) if recipe in known else Recipe.load(recipe)
    with pytest.raises(UserError, match="names images.*text without images"):
        compress.plan("embedded", wanted, settings={"calibrate.data": str(data)})
