"""What the kills benchmark compares and lists."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.kills import Outcome, _left_behind, _outcome

RIGHT = Outcome("w4-gptq", kills=3, finished=2, same=2)


def test_files_beside_in_and_in_the_temporary_folder_are_left_behind(tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    for place in (whole, folder / "out", folder / "tmp"):
        place.mkdir(parents=True)
        (place / "model.safetensors").touch()
    (folder / "tmp" / "model.safetensors").unlink()
    assert _left_behind(folder, whole) == set()
    for name in ("out.partial", "out/journal.jsonl", "tmp/.activations-1"):
        (folder / name).touch()
    assert _left_behind(folder, whole) == {"out.partial", "journal.jsonl", "tmp/.activations-1"}


@pytest.mark.parametrize(
    "change", [{"same": 1}, {"left_behind": ("out.partial",)}, {"failures": ("status 1",)}]
)
def test_an_outcome_is_right_only_if_all_is_the_same_and_nothing_is_left(change: dict[str, object]) -> None:
    assert RIGHT.right
    assert not replace(RIGHT, **change).right  # type: ignore[arg-type]


def test_an_outcome_is_read_as_it_was_saved() -> None:
    outcome = replace(RIGHT, left_behind=("a", "b"))
    assert _outcome(json.loads(json.dumps(asdict(outcome)))) == outcome
