from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compress.evaluation import CheckpointFigures
from compress.evaluation.provenance import read_provenance, spreads_of, thin_notes


def write(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    data = {
        "recipe": {"name": "w4"},
        "seed": 0,
        "calibration": {"data": "embedded", "tokens": 100},
        "weights": [{"shape": [4, 64]}, {"shape": [4, 32]}],
    }
    (folder / "compress.json").write_text(json.dumps(data | changes), encoding="utf-8")
    return folder


def test_seeds_spread_within_a_recipe(tmp_path: Path) -> None:
    folders = [write(tmp_path / str(seed), seed=seed) for seed in range(3)]
    folders.append(write(tmp_path / "other", seed=3, recipe={"name": "w8"}))
    folders.append(write(tmp_path / "text", seed=4, calibration={"data": "notes", "tokens": 9}))
    rows = [
        CheckpointFigures(folder.name, str(folder), 1.0, kl=kl)
        for folder, kl in zip(folders, (0.1, 0.2, 0.6, 9.0, 9.0), strict=True)
    ]
    made = [read_provenance(folder) for folder in folders]
    (one,) = spreads_of(rows, made)
    assert (one.recipe, one.names) == ("w4", ("0", "1", "2"))
    assert one.kl == pytest.approx(0.3)
    assert one.deviation == pytest.approx(0.07**0.5)
    assert spreads_of(rows[:1], made[:1]) == ()


def test_little_calibration_is_said(tmp_path: Path) -> None:
    made = [
        read_provenance(write(tmp_path / "thin")),
        read_provenance(write(tmp_path / "enough", calibration={"data": "embedded", "tokens": 128})),
        read_provenance(write(tmp_path / "none", calibration=None)),
    ]
    (note,) = thin_notes(["thin", "enough", "none"], made)
    assert note.startswith("thin was calibrated on 100 tokens, fewer than twice the 64 inputs")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"recipe": 1, "weights": []}'])
def test_what_is_no_report_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "compress.json").write_text(text, encoding="utf-8")
    assert read_provenance(tmp_path) is None
    assert read_provenance(tmp_path / "missing") is None
