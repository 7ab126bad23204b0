"""The share of the blocks' matrices that is compressed, the warning and the refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import compress
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.skeleton import Skeleton, open_skeleton
from compress.planning.coverage import Coverage, coverage


@pytest.fixture(scope="module")
def skeleton(tiny_model: Callable[..., Path]) -> Skeleton:
    return open_skeleton(open_source(tiny_model("llama")))


def numel(skeleton: Skeleton) -> dict[str, int]:
    return {view.name: view.shape[0] * view.shape[1] for view in skeleton.views if view.block is not None}


def test_all_of_it(skeleton: Skeleton) -> None:
    found = coverage(skeleton, numel(skeleton), ())
    assert (found.share, found.lowest, found.left) == (1.0, 1.0, "")
    assert found.is_enough


def test_the_block_with_the_least_and_its_largest_matrix(skeleton: Skeleton) -> None:
    sizes = numel(skeleton)
    total, gone = sum(sizes.values()), ("model.layers.1.mlp.up_proj", "model.layers.1.self_attn.k_proj")
    left = sum(sizes.pop(name) for name in gone)
    found = coverage(skeleton, sizes, ())
    assert found.share == (total - left) / total
    assert found.lowest == (total / 2 - left) / (total / 2)
    assert (found.block, found.left) == ("model.layers.1", "model.layers.1.mlp.up_proj.weight")
    assert not found.is_enough


def test_what_the_recipe_ignores_does_not_count(skeleton: Skeleton) -> None:
    sizes = numel(skeleton)
    del sizes["model.layers.1.mlp.up_proj"]
    assert coverage(skeleton, sizes, ["model.layers.1.mlp.up_proj"]).lowest == 1.0


def test_the_sentence_gives_the_reason() -> None:
    found = Coverage(0.6, 0.4, "model.layers.1", "model.layers.1.mlp.up_proj.weight")
    said = found.sentence({"model.layers.1.mlp.up_proj": "not targeted by the recipe"})
    assert "40%" in said
    assert "60%" in said
    assert "not targeted by the recipe" in said


def test_a_run_warns_and_a_strict_one_refuses(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    model, settings = tiny_model("qwen3_moe"), {"targets": ["linear"]}
    result = compress.compress(model, "w4-rtn", tmp_path / "out", settings=settings, device="cpu")
    (note,) = [note for note in result.report.notes if "matrix parameters" in note]
    assert "experts" in note
    assert result.plan.coverage.share < 0.5
    with pytest.raises(UserError, match="matrix parameters"):
        compress.compress(model, "w4-rtn", tmp_path / "strict", settings=settings, device="cpu", strict=True)
    assert not (tmp_path / "strict").exists()


def test_a_strict_run_of_all_weights_goes_through(tiny_model: Callable[..., Path]) -> None:
    assert compress.plan(tiny_model("qwen3_moe"), "w4-rtn", strict=True).coverage.is_enough
