"""One share spread over the weights of a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compress import Recipe, compress, plan, verify
from compress.allocate.sparsities import Importances, allocate_sparsities, importances
from compress.errors import UserError


def found(scales: dict[str, float]) -> dict[str, Importances]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: importances(block, 0.5, scale * torch.rand(32, 64, generator=generator).square())
        for block, (name, scale) in enumerate(scales.items())
    }


def test_a_threshold_is_the_same_as_sorting_everything() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = {"a": 1.0, "b": 4.0, "c": 0.0}
    weights = {name: scale * torch.rand(32, 64, generator=generator) for name, scale in scales.items()}
    chosen = allocate_sparsities(
        {name: importances(0, 0.6, each) for name, each in weights.items()}, "threshold"
    )
    assert chosen["c"] == pytest.approx(0.99)  # some of every weight stays, and the others make up for it
    assert sum(chosen.values()) / 3 == pytest.approx(0.6)
    cuts = {name: weights[name].flatten().sort().values[int(chosen[name] * 2048)] for name in ("a", "b")}
    assert float(cuts["a"]) == pytest.approx(float(cuts["b"]), rel=0.05)


def test_owl_spares_blocks_with_outliers_and_keeps_the_mean() -> None:
    seen = found({"a": 1.0, "b": 1.0, "c": 1.0})
    seen = {
        name: Importances(each.block, each.sparsity, each.counts, 0.01 * each.block)
        for name, each in seen.items()
    }
    chosen = allocate_sparsities(seen, "owl")
    assert chosen["a"] == pytest.approx(0.58)
    assert chosen["c"] == pytest.approx(0.42)
    assert sum(chosen.values()) / 3 == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("family", "prune"),
    [
        ("llama", {"scope": "global"}),
        ("llama", {"allocate": "owl"}),
        ("llama", {"allocate": "fisher", "scope": "layer"}),
        ("gpt_oss", {"scope": "global"}),
    ],
)
def test_the_share_of_the_whole_model_is_as_asked(
    tiny_model: Callable[..., Path], tmp_path: Path, family: str, prune: dict[str, Any]
) -> None:
    recipe = Recipe.parse({"name": "x", "steps": [{"prune": {"sparsity": 0.5, **prune}, "solver": "wanda"}]})
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog " * 40)
    result = compress(tiny_model(family), recipe, tmp_path / "out", data=str(text), samples=4, length=32)
    kept = sum(weight.layout.nnz for weight in result.plan.weights)  # type: ignore[attr-defined]
    whole = sum(weight.numel for weight in result.plan.weights)
    assert kept / whole == pytest.approx(0.5, abs=0.01)  # rows of 64 leave out whole elements
    assert len(set(result.plan.sparsities.values())) > 1
    assert sum(f.stat().st_size for f in (tmp_path / "out").glob("*.safetensors")) == result.plan.total_bytes
    verify(tmp_path / "out", tiny_model(family))
    again = plan(tiny_model(family), recipe, data=str(text), samples=4, length=32)
    assert again.total_bytes == result.plan.total_bytes


@pytest.mark.parametrize(
    "prune",
    [
        {},
        {"sparsity": 0.5, "pattern": "2:4"},
        {"pattern": "4:4"},
        {"pattern": "2:4", "scope": "layer"},
        {"sparsity": 0.5, "block": [4, 4], "scope": "global"},
        {"sparsity": 0.5, "scope": "global", "allocate": "owl"},
        {"sparsity": 1.0},
    ],
)
def test_contradictions_are_refused(prune: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="prune"):
        Recipe.parse({"name": "x", "steps": [{"prune": prune, "solver": "wanda"}]})


def test_outliers_are_counted_by_the_root_of_the_importance() -> None:
    # Roots: 1 everywhere, 4 and 8 once each; over 5 times the mean of 1.1 is the 8 alone.
    roots = torch.ones(10, 10)
    roots[0, 0], roots[1, 1] = 4.0, 8.0
    assert importances(0, 0.5, roots.square(), 5.0).outliers == pytest.approx(0.01)
    assert importances(0, 0.5, roots.square(), 3.0).outliers == pytest.approx(0.02)


def test_owl_weighs_blocks_by_their_size() -> None:
    counts = {name: torch.zeros(8192, dtype=torch.int64) for name in ("small", "large")}
    counts["small"][0], counts["large"][0] = 100, 900
    seen = {
        "small": Importances(0, 0.5, counts["small"], 0.02),
        "large": Importances(1, 0.5, counts["large"], 0.0),
    }
    chosen = allocate_sparsities(seen, "owl")
    assert chosen["large"] - chosen["small"] == pytest.approx(0.16)
    assert 0.1 * chosen["small"] + 0.9 * chosen["large"] == pytest.approx(0.5)


def test_a_bin_in_which_the_threshold_lies_is_shared_out() -> None:
    alike = {name: importances(0, 0.3, torch.ones(10, 10)) for name in ("a", "b")}
    assert allocate_sparsities(alike, "threshold") == pytest.approx({"a": 0.3, "b": 0.3})
