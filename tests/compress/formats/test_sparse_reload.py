"""Sparse checkpoints from end to end: smaller, verified, loaded packed, the same numbers as a dense copy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_kernels.modules import PackedLinear

from compress import Recipe, compress, load, verify

STEPS: dict[str, dict[str, Any]] = {
    "half": {"prune": {"sparsity": 0.5}, "solver": "awp"},
    "blocks": {"prune": {"sparsity": 0.5, "block": [4, 8]}, "solver": ["wanda", "refit"]},
    "two of four": {"prune": {"pattern": "2:4"}, "solver": "sparsegpt"},
    "half at 4 bits": {
        "prune": {"sparsity": 0.5},
        "quantize": {"bits": 4, "group_size": 32, "symmetric": False},
        "solver": ["awp", "sparsegpt", "coordinate_descent"],
    },
    "two of four at 4 bits": {
        "prune": {"pattern": "2:4"},
        "quantize": {"bits": 4, "group_size": 32},
        "solver": ["awp", "sparsegpt", "coordinate_descent"],
    },
}


@pytest.mark.parametrize(
    ("family", "label"),
    [
        *(("llama", label) for label in STEPS),
        ("gpt2", "two of four"),
        ("gpt_oss", "blocks"),
        ("gpt_oss", "two of four at 4 bits"),
        ("qwen3_moe", "blocks"),
    ],
)
def test_a_sparse_checkpoint_is_what_its_dense_copy_is(
    tiny_model: Callable[..., Path], tmp_path: Path, family: str, label: str
) -> None:
    source = tiny_model(family)
    recipe = Recipe.parse({"name": "x", "steps": [STEPS[label]]})
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog " * 40)
    settings: dict[str, Any] = {"data": str(text), "samples": 4, "length": 32}
    native = compress(source, recipe, tmp_path / "native", **settings)
    compress(source, recipe, tmp_path / "dense", format="dense", **settings)
    assert native.plan.format == "native"
    assert native.plan.bits_per_weight < (6 if "quantize" in STEPS[label] else 10)
    verify(tmp_path / "native", source)
    packed, dense = load(tmp_path / "native"), load(tmp_path / "dense")
    if family == "llama":
        assert sum(isinstance(module, PackedLinear) for module in packed.modules()) == 14
    tokens = torch.arange(24).unsqueeze(0)
    with torch.no_grad():
        ours, theirs = packed(tokens).logits.float(), dense(tokens).logits.float()
    assert float((ours - theirs).norm() / theirs.norm()) < 3e-2
