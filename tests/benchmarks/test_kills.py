"""What the kills benchmark compares and lists."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.kills import Outcome, _left_behind, _outcome

RIGHT = Outcome("w4-gptq", kills=3, finished=2, same=2)


def test_files_beside_in_and_in_the_temporary_folder_are_left_behind(tmp_path: Path) -> None:
    unbroken, folder = tmp_path / "unbroken", tmp_path / "killed"
    for place in (unbroken, folder):
        for inner in ("out", "tmp"):
            (place / inner).mkdir(parents=True)
            (place / inner / "model.safetensors").touch()
    assert _left_behind(folder, unbroken) == set()
    names = {"out.partial", "out/journal.jsonl", "tmp/.activations-1"}
    for name in names:
        (folder / name).touch()
    assert _left_behind(folder, unbroken) == names


@pytest.mark.parametrize(
    "change", [{"same": 1}, {"left_behind": ("out.partial",)}, {"failures": ("status 1",)}]
)
def test_an_outcome_is_right_only_if_all_is_the_same_and_nothing_is_left(change: dict[str, object]) -> None:
    assert RIGHT.right
    assert not replace(RIGHT, **change).right  # type: ignore[arg-type]


def test_an_outcome_is_read_as_it_was_saved() -> None:
    outcome = replace(RIGHT, left_behind=("a", "b"))
    assert _outcome(json.loads(json.dumps(asdict(outcome)))) == outcome
