"""Extreme elements are told, with the recipe that survives them; ordinary weights are not mentioned."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import compress as api
from compress.pipeline.outliers import outlier_notes, outlier_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_extreme_elements_count(dtype: torch.dtype) -> None:
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert outlier_of(weight) is None
    weight[3, 5] = -1e4
    found = outlier_of(weight)
    assert found is not None
    assert found == pytest.approx(1e4 / float(weight.float().abs().median()), rel=0.05)
    assert outlier_of(torch.zeros(4, 4)) is None


def test_the_sentence_names_the_worst() -> None:
    records = {"a": {"outlier": 2e3}, "b": {"outlier": None}, "c": {"outlier": 5e5}, "d": {}}
    (note,) = outlier_notes(records.items())
    assert note.startswith("2 weights hold")
    assert "in c, 5e+05 times" in note
    assert "w8" in note
    assert outlier_notes([("b", {"outlier": None})]) == []


def test_a_run_reports_them(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model("llama"), tmp_path / "model"))
    options = {"settings": {"quantize.group_size": 32}, "device": "cpu"}
    assert api.compress(model, "w4-rtn", tmp_path / "plain", **options).report.notes == ()
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    tensors[f"{name}.weight"][3, 5] = 1e4
    save_file(tensors, model / "model.safetensors")
    report = api.compress(model, "w4-rtn", tmp_path / "out", **options).report
    assert [weight.name for weight in report.weights if weight.outlier is not None] == [name]
    assert name in report.notes[0]
