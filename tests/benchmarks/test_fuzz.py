"""Batches of the fuzz benchmark in one file of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fuzz import save_batch


def batch(first: int, cases: int, revision: str, faults: dict[str, int] | None = None) -> dict[str, Any]:
    ends = {"0": cases // 2, "2": cases - cases // 2}
    return {"first": first, "cases": cases, "ends": ends, "faults": faults or {}, "revision": revision}


def test_batches_of_other_seeds_are_added_up(tmp_path: Path) -> None:
    file = tmp_path / "fuzz.json"
    save_batch(file, batch(1000, 500, "b"))
    save_batch(file, batch(0, 1000, "a", {"hang": 2}))
    saved = json.loads(file.read_text())
    assert [one["first"] for one in saved["batches"]] == [0, 1000]
    assert saved["cases"] == 1500
    assert saved["ends"] == {"0": 750, "2": 750}
    assert saved["faults"] == {"hang": 2}
    assert saved["revisions"] == ["a", "b"]


def test_a_batch_replaces_those_that_it_covers(tmp_path: Path) -> None:
    file = tmp_path / "fuzz.json"
    for first in (0, 500, 1000):
        save_batch(file, batch(first, 500, "a", {"hang": 1}))
    save_batch(file, batch(0, 1000, "b"))
    saved = json.loads(file.read_text())
    assert [(one["first"], one["revision"]) for one in saved["batches"]] == [(0, "b"), (1000, "a")]
    assert saved["faults"] == {"hang": 1}


def test_a_batch_that_cuts_another_in_two_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "fuzz.json"
    save_batch(file, batch(0, 1000, "a"))
    with pytest.raises(ValueError, match="begins at 0 overlaps"):
        save_batch(file, batch(500, 1000, "b"))
    assert json.loads(file.read_text())["cases"] == 1000
