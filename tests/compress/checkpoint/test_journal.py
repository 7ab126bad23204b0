"""The journal is read as far as it is intact, whatever somebody has done to it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from compress.checkpoint.journal import VERSION, Entry, Journal, Recorded, is_journal, read_journal

ENTRIES = (
    Entry("rest", {"head": {"error": 0.5}}, {"head.weight": "00"}, {"solve": 1.5}),
    Entry(0, {"a": {"error": 0.1}}, {"a.weight": "11"}, {"solve": 2}),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.begin("f", {"seed": 0})
    for entry in ENTRIES:
        journal.append(entry)
    journal.close()
    return tmp_path / "journal.jsonl"


def test_what_was_written_is_read(path: Path) -> None:
    recorded = read_journal(path)
    assert (recorded.fingerprint, recorded.settings, recorded.entries) == ("f", {"seed": 0}, ENTRIES)
    assert recorded.ends[-1] == path.stat().st_size
    assert is_journal(path)


def test_opened_at_an_end_it_goes_on_from_there(path: Path) -> None:
    journal = Journal(path, read_journal(path).ends[1])
    journal.append(Entry(1, {}, {}))
    journal.close()
    assert [entry.block for entry in read_journal(path).entries] == ["rest", 1]


def test_every_torn_end_leaves_whole_entries(path: Path) -> None:
    data, ends = path.read_bytes(), read_journal(path).ends
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert len(read_journal(path).entries) == sum(end <= length for end in ends[1:])


def signed(line: str) -> str:
    """The line with the hash that fits it, where it is an object."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return line
    if not isinstance(data, dict):
        return line
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    return json.dumps({**data, "sha256": digest})


def test_a_changed_figure_ends_the_reading(path: Path) -> None:
    path.write_text(path.read_text().replace('"error": 0.1', '"error": 0.2'))
    assert read_journal(path).entries == ENTRIES[:1]


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "[]",
        "3",
        "null",
        "[" * 100_000,
        json.dumps({"block": 1, "records": [], "tensors": {}, "seconds": {}}),
        json.dumps({"block": 1, "records": {}, "tensors": {"a": 3}, "seconds": {}}),
        json.dumps({"block": 1, "records": {"a": 3}, "tensors": {}, "seconds": {}}),
        json.dumps({"block": 1, "records": {}, "tensors": {}, "seconds": {"solve": "long"}}),
        json.dumps({"block": None, "records": {}, "tensors": {}, "seconds": {}}),
        json.dumps({"block": 1, "records": {}, "tensors": {}, "seconds": {}, "more": 1}),
        json.dumps({"block": True, "records": {}, "tensors": {}, "seconds": {}}),
    ],
)
def test_an_altered_entry_ends_the_reading(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(
            signed(line) + "\n" + json.dumps({"block": 2, "records": {}, "tensors": {}, "seconds": {}}) + "\n"
        )
    assert read_journal(path).entries == ENTRIES


@pytest.mark.parametrize(
    ("first", "ours"),
    [
        ({"version": VERSION, "fingerprint": "f"}, True),
        ({"version": 1, "fingerprint": "f"}, True),
        ({"version": VERSION}, False),
        ({"version": "2", "fingerprint": "f"}, False),
        ({"version": VERSION, "fingerprint": 3}, False),
        ([], False),
    ],
)
def test_the_first_line_says_whose_it_is(tmp_path: Path, first: object, ours: bool) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(json.dumps(first) + "\n")
    assert is_journal(path) is ours
    known = ours and isinstance(first, dict) and first["version"] == VERSION
    assert (read_journal(path).fingerprint == "f") is known


def test_no_journal_at_all(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "none") == Recorded()
    assert not is_journal(tmp_path / "none")
    (tmp_path / "empty").touch()
    assert read_journal(tmp_path / "empty") == Recorded()
    assert not is_journal(tmp_path / "empty")
