"""Thirty tiny models of different kinds, written, verified, opened by plain transformers and by `compress.load`, compared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.zoo.__main__ import is_fine, table
from benchmarks.zoo.check import ENOUGH, RECIPES
from benchmarks.zoo.configs import kinds, skipped

RECIPE = "w4-rtn"
KINDS = (
    "bart",  # the decoder of a pair
    "bert",
    "blt",  # blocks of several towers
    "cpmant",  # a prompt before the text
    "dbrx",  # experts below each other in two dimensions
    "deepseek_v3",
    "deepseek_v4",
    "falcon",  # a linear layer of its own
    "falcon_h1",  # buffers that the whole model fills
    "gemma3n_text",  # widths as lists, hidden states of four dimensions
    "gpt_bigcode",  # code that reads the weights of layers
    "gpt_oss",
    "granitemoehybrid",
    "hrm_text",  # blocks that are called several times
    "inkling2_text",  # experts whose gate and up rows alternate on disk
    "hy_v4",  # blocks that hand on more than hidden states
    "jetmoe",  # experts in attention
    "lfm2",
    "llama4_text",  # experts multiplied all at once
    "longcat_flash",
    "mamba2",
    "mpt",
    "nemotron_h",  # four kinds of blocks
    "phimoe",  # a router that is a linear layer
    "qwen3_5_moe_text",
    "qwen3_next",
    "reformer",  # reversible blocks
    "rwkv",  # changes its weights in place
    "xlnet",  # projections of three dimensions
    "zamba2",  # blocks that share weights
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("zoo") / "results.json"
    command = [sys.executable, "-m", "benchmarks.zoo", "--quiet", "--recipes", RECIPE, "--out", str(out)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [*command, "--only", *KINDS], cwd=root, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_every_kind(kind: str, results: dict[str, Any]) -> None:
    found = results[kind].get("recipes", {}).get(RECIPE, results[kind])
    assert "failed" not in found, found["failed"]
    assert "refused" not in found, found["refused"]
    assert found["coverage"] >= ENOUGH
    assert found["format"] in ("compressed-tensors", "native")
    if found["format"] == "compressed-tensors":
        assert "difference" in found


def test_every_class_is_tried_or_left_out_for_a_reason() -> None:
    known = kinds()
    assert len(known) > 150
    assert set(KINDS) <= set(known)
    left_out = {kind: reason for kind in known if (reason := skipped(kind))}
    assert len(left_out) < 25
    assert not set(KINDS) & set(left_out)


def _found(coverage: float = 1.0, **recipes: str) -> dict[str, Any]:
    """Results in which every recipe came out right but those that are named with what happened."""
    right = {recipe: {"coverage": coverage} for recipe in RECIPES}
    return {"recipes": right | {name.replace("_", "-"): {said: "why"} for name, said in recipes.items()}}


def test_what_counts_as_fine() -> None:
    assert is_fine(_found())
    assert is_fine(_found(nf4="refused"))
    assert not is_fine(_found(nf4="failed"))
    assert not is_fine(_found(0.9))
    assert not is_fine(_found(w4_rtn="refused"))
    assert not is_fine({"recipes": {RECIPES[0]: {"coverage": 1.0}}})
    assert not is_fine({"error": "stopped after 120 s"})


def test_the_table_has_both_kinds_of_models_and_the_counts() -> None:
    results = {
        "bert": _found(),
        "rwkv": _found(w4_gptq="refused"),
        "vision-language/llava": _found(nf4="failed"),
    }
    for found in results.values():
        found |= {"transformers": "5.0", "date": "2026-01-02"}
    text = table(results)
    assert "Of 2 model types" in text
    assert "w4-rtn 2, w4-gptq 1" in text
    assert "at least 95% compressed: 2." in text
    assert "Of 1 vision-language models" in text
    assert "transformers 5.0; run 2026-01-02." in text
    assert "| rwkv | yes | refused | yes |" in text
    assert "| llava | yes | yes | yes | no |" in text
