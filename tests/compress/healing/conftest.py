"""A trained text for tiny models, a compressed tiny model, and a short healing of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.healing.stage import Healed, heal
from compress.pipeline.steps import compress
from compress.recipe.recipe import Recipe

SHORT: dict[str, Any] = {
    "tokens": 1024,
    "length": 32,
    "batch": 4,
    "holdout": 4,
    "evaluations": 4,
    "rate": 0.02,
}
"""Eight steps of four windows."""
STEPS: dict[str, dict[str, Any]] = {
    "grid": {"quantize": {"bits": 2, "group_size": 32, "symmetric": False}, "solver": "nearest"},
    "symmetric": {"quantize": {"bits": 2, "group_size": 32}, "solver": "nearest"},
    "w4": {"quantize": {"bits": 4, "group_size": 32, "symmetric": False}, "solver": "nearest"},
    "w4-affine": {
        "quantize": {"bits": 4, "group_size": 32, "symmetric": False, "zero_point": "float"},
        "solver": "nearest",
    },
    "q4_0": {"quantize": {"type": "q4_0", "bits": 4}, "solver": "nearest"},
    "nf4": {"quantize": {"type": "nf4", "bits": 4, "group_size": 64}, "solver": "nearest"},
    "nvfp4": {"quantize": {"type": "nvfp4", "bits": 4}, "solver": "nearest"},
    "sparse": {"prune": {"sparsity": 0.7}, "solver": "wanda"},
    "2:4": {"prune": {"pattern": "2:4"}, "solver": "wanda"},
    "sparse-grid": {
        "prune": {"sparsity": 0.5},
        "quantize": {"bits": 4, "group_size": 32, "symmetric": False},
        "solver": "awp",
    },
    "low-rank": {"lowrank": {"ratio": 0.5}, "solver": "weighted_svd"},
    "sum": {
        "quantize": {"bits": 2, "group_size": 32, "symmetric": False},
        "lowrank": {"rank": 4},
        "solver": ["gptq", "eora"],
    },
}

WIDTHS: dict[str, dict[str, Any]] = {"narrow": {"width_pruning": {"neurons": 0.5}}}


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog and runs away from it again " * 60)
    return path


@pytest.fixture(scope="session")
def compressed(
    tiny_model: Callable[..., Path], text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, Path]]:
    """``compressed("grid", family="llama", format="auto")`` → the compressed folder and its source; both stay as they are."""
    made: dict[tuple[str, ...], tuple[Path, Path]] = {}

    def make(name: str, family: str = "llama", format: str = "auto") -> tuple[Path, Path]:
        key = (name, family, format)
        if key not in made:
            source, out = tiny_model(family), tmp_path_factory.mktemp("out") / name.replace(":", "-")
            targets = ["linear", "experts"] if family == "mixtral" else ["linear"]
            recipe = Recipe.parse(
                {"name": name, **WIDTHS[name]}
                if name in WIDTHS
                else {"name": name, "steps": [{"targets": targets, **STEPS[name]}]}
            )
            compress(source, recipe, out, data=str(text), samples=4, length=32, format=format)
            made[key] = (out, source)
        return made[key]

    return make


@pytest.fixture(scope="session")
def healed(
    compressed: Callable[..., tuple[Path, Path]], text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Healed]:
    """``healed("grid", ["norms"], family="llama", **settings)`` → the result of a short healing into a folder of its own."""

    def make(name: str, train: Any, family: str = "llama", format: str = "auto", **settings: Any) -> Healed:
        out, source = compressed(name, family, format)
        new = tmp_path_factory.mktemp("healed") / "new"
        return heal(out, source=source, data=str(text), train=train, settings={**SHORT, **settings}, new=new)

    return make
