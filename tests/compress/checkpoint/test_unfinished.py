"""An unfinished output of other settings is refused before any work, and the sentence says what differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.checkpoint.journal import Entry, Journal, read_journal
from compress.checkpoint.unfinished import BEGUN, check_unfinished, counted, what_differs
from compress.errors import UserError

SETTINGS = {"recipe": {"bits": 4}, "seed": 0}


def unfinished(out: Path, blocks: int) -> Path:
    partial = out.with_name(out.name + ".partial")
    partial.mkdir()
    journal = Journal(partial / "journal.jsonl")
    journal.begin("f", SETTINGS)
    for block in range(blocks):
        journal.append(Entry(block, {}, {}))
    journal.close()
    return partial


def check(tmp_path: Path, settings: dict[str, object], **options: bool) -> None:
    check_unfinished(tmp_path / "out", settings, source=tmp_path / "source", **options)


def test_of_other_settings_it_is_refused(tmp_path: Path) -> None:
    unfinished(tmp_path / "out", 1)
    check(tmp_path, SETTINGS)
    check(tmp_path, {"seed": 0})
    with pytest.raises(UserError, match=r"1 block is done; what differs: seed \(0, now 1\)"):
        check(tmp_path, {"seed": 1})
    check(tmp_path, {"seed": 1}, restart=True)


def test_without_a_block_nothing_is_lost(tmp_path: Path) -> None:
    unfinished(tmp_path / "out", 0)
    check(tmp_path, {"seed": 1})


def test_an_existing_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").touch()
    with pytest.raises(UserError, match="already exists"):
        check(tmp_path, SETTINGS)
    check(tmp_path, SETTINGS, overwrite=True)
    (tmp_path / "out.replaced").mkdir()
    with pytest.raises(UserError, match="in the way"):
        check(tmp_path, SETTINGS, overwrite=True)


def test_what_differs_in_words(tmp_path: Path) -> None:
    partial = unfinished(tmp_path / "out", 2)
    recorded = read_journal(partial / "journal.jsonl")
    assert what_differs(partial, recorded, "f", SETTINGS) == "its weight files are damaged"
    assert what_differs(partial, recorded, "g", SETTINGS) == "the plan"
    assert what_differs(partial, recorded, "g", {**SETTINGS, "seed": 1}) == "seed (0, now 1)"
    (partial / "journal.jsonl").write_text('{"version": 1, "fingerprint": "f"}\n')
    recorded = read_journal(partial / "journal.jsonl")
    assert "another version" in what_differs(partial, recorded, "f", SETTINGS)


def test_what_entries_stand_for() -> None:
    assert counted([0]) == "1 block is"
    assert counted(["rest", 0, 1]) == "2 blocks are"
    assert counted(["rest"]) == "what lies outside of the blocks is"
    assert counted([BEGUN, "healed"]) == "a part of a healing is"
