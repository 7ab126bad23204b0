"""Figures of an evaluation: they come back from JSON unchanged, and damaged files are refused."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from compress.errors import UserError
from compress.evaluation.figures import CheckpointFigures, Evaluation, TaskFigure


def row(name: str, **changes: Any) -> CheckpointFigures:
    return CheckpointFigures(name, f"out/{name}", **{"perplexity": 12.5, **changes})


def evaluation(**changes: Any) -> Evaluation:
    fields: dict[str, Any] = {
        "reference": row("dense", tasks=(TaskFigure("boolq", "acc", 0.75, 0.1, 40),)),
        "candidates": (row("w4", kl=0.125, kl_error=0.01, top1=0.9, notes=("a note",)), row("w2")),
        "text": "held-out.txt",
        "length": 256,
        "windows": 80,
        "dtype": "fp32",
        "device": "cpu",
        "threads": 2,
        "notes": ("of all rows",),
    }
    return Evaluation(**(fields | changes))


def test_there_and_back(tmp_path: Path) -> None:
    before = evaluation(bos=True)
    before.save(tmp_path / "evaluation.json")
    assert Evaluation.read(tmp_path / "evaluation.json") == before
    assert json.loads((tmp_path / "evaluation.json").read_text())["schema_version"] == 1


def test_a_broken_checkpoint_s_figures_survive(tmp_path: Path) -> None:
    broken = row("broken", perplexity=math.inf, tasks=(TaskFigure("boolq", "acc", math.nan, None, None),))
    evaluation(candidates=(broken,)).save(tmp_path / "evaluation.json")
    text = (tmp_path / "evaluation.json").read_text()
    assert "Infinity" not in text
    assert "NaN" not in text
    (again,) = Evaluation.read(tmp_path / "evaluation.json").candidates
    assert again.perplexity == math.inf
    assert math.isnan(again.tasks[0].value)


def test_rows_tokens_and_context() -> None:
    figures = evaluation()
    assert [row.name for row in figures.rows] == ["dense", "w4", "w2"]
    assert figures.tokens == 256 * 80
    assert figures.context == (
        "a context of 256 tokens, on the first 80 consecutive windows of held-out.txt, in fp32 on cpu"
    )
    assert "of held-out.txt, each after a BOS token" in evaluation(bos=True).context


DAMAGED: dict[str, Any] = {
    "not JSON": "{",
    "a list": "[]",
    "another schema": '{"schema_version": 1}',
    "an unknown field": lambda data: data | {"surprise": 1},
    "a row that lacks its perplexity": lambda data: data | {"reference": {"name": "x", "path": "y"}},
    "an unknown field of a row": lambda data: data | {"reference": data["reference"] | {"surprise": 1}},
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_files_are_refused_in_one_sentence(damage: str, tmp_path: Path) -> None:
    change, path = DAMAGED[damage], tmp_path / "evaluation.json"
    path.write_text(change if isinstance(change, str) else json.dumps(change(evaluation().to_json())))
    with pytest.raises(UserError, match="measure again"):
        Evaluation.read(path)
    with pytest.raises(UserError, match="There is no file"):
        Evaluation.read(tmp_path / "missing.json")


def test_files_without_the_later_fields_can_be_read() -> None:
    data = evaluation(notes=()).to_json()
    for name in ("notes", "bos"):
        del data[name]
    for name in ("tasks", "notes", "kl_error"):
        del data["candidates"][1][name]
    assert Evaluation.from_json(data) == evaluation(notes=())


def test_records_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        evaluation().length = 1  # type: ignore[misc]
