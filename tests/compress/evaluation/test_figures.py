"""Figures of an evaluation go to JSON and come back unchanged, numbers that are none included."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from compress.errors import UserError
from compress.evaluation.figures import CheckpointFigures, Evaluation, TaskFigure

DENSE = CheckpointFigures("dense", "in/dense", 20.0, bytes_on_disk=100)
PACKED = CheckpointFigures(
    "packed",
    "out/packed",
    21.5,
    kl=0.01,
    kl_error=0.001,
    top1=0.95,
    bytes_on_disk=30,
    bits_per_weight=4.25,
    tasks=(TaskFigure("hellaswag", "acc", 0.5, 0.1, 40), TaskFigure("arc", "acc", 0.25, None, None)),
    notes=("slow",),
)
EVALUATION = Evaluation(DENSE, (PACKED,), "held-out.txt", 256, 80, "fp32", "cpu", 2, notes=("two threads",))


def test_to_json_and_back() -> None:
    assert Evaluation.from_json(json.loads(json.dumps(EVALUATION.to_json()))) == EVALUATION


def test_to_a_file_and_back(tmp_path: Path) -> None:
    EVALUATION.save(tmp_path / "figures.json")
    assert Evaluation.read(tmp_path / "figures.json") == EVALUATION


def test_numbers_that_are_none_become_null_and_come_back() -> None:
    broken = dataclasses.replace(
        EVALUATION,
        candidates=(
            dataclasses.replace(
                PACKED, perplexity=math.inf, kl=math.nan, tasks=(TaskFigure("t", "m", math.nan, None, 1),)
            ),
        ),
    )
    data = broken.to_json()
    assert data["candidates"][0]["perplexity"] is None
    json.dumps(data, allow_nan=False)
    (row,) = Evaluation.from_json(data).candidates
    assert row.perplexity == math.inf
    assert row.kl is None
    assert math.isnan(row.tasks[0].value)


def test_rows_and_tokens() -> None:
    assert EVALUATION.rows == (DENSE, PACKED)
    assert EVALUATION.tokens == 256 * 80


def test_the_context_says_how_it_was_measured() -> None:
    assert EVALUATION.context == (
        "a context of 256 tokens, on the first 80 consecutive windows of held-out.txt, in fp32 on cpu"
    )
    assert "each after a BOS token" in dataclasses.replace(EVALUATION, bos=True).context


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "[" * 10**5,
        "{}",
        '{"reference": 3}',
        "null",
        "\x00",
        '{"reference": {"name": "x"}, "candidates": []}',
    ],
)
def test_a_file_that_is_no_evaluation(tmp_path: Path, content: str) -> None:
    path = tmp_path / "figures.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="is not an evaluation that this version can read") as caught:
        Evaluation.read(path)
    assert "compress eval" in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing"):
        Evaluation.read(tmp_path / "nothing.json")


@pytest.mark.parametrize("key", ["perplexity", "kl", "top1", "bits_per_weight"])
def test_every_figure_is_written_under_its_name(key: str) -> None:
    data: dict[str, Any] = EVALUATION.to_json()["candidates"][0]
    assert data[key] == getattr(PACKED, key)
