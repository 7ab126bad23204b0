"""Text files of every form, whole and in part; what is said of damaged ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compress.errors import UserError
from compress.text.documents import open_documents
from compress.text.records import TokenIds

SEPARATORS = "one\u2028two\u2029three\x85four\x0bfive\x0csix"
"""Line ends for ``str.splitlines``, which JSON strings may hold."""


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a"])
def test_any_other_file_is_one_text(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, "\ufeffone\ntwo")
    documents = open_documents(path)
    assert documents.form == "text"
    assert documents.all() == ["one\ntwo"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "A.JSONL"])
def test_lines_end_at_line_feeds_alone(tmp_path: Path, name: str) -> None:
    line = json.dumps({"text": SEPARATORS.replace("\x0b", " ").replace("\x0c", " ")}, ensure_ascii=False)
    path = written(tmp_path / name, f"\ufeff\r\n{line}\r\n\n{line}\n")
    documents = open_documents(path)
    assert documents.form == "lines"
    assert documents.all() == [json.loads(line)["text"]] * 2


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_one_array_over_the_file(tmp_path: Path, name: str, indent: int | None) -> None:
    path = written(
        tmp_path / name, "\ufeff" + json.dumps([{"text": "a"}, {"text": " "}, [1, 2]], indent=indent)
    )
    documents = open_documents(path)
    assert documents.form == "json"
    assert documents.all() == ["a", TokenIds((1, 2))]


def test_one_record_alone(tmp_path: Path) -> None:
    assert open_documents(written(tmp_path / "a.json", '{"text":\n "a"}')).all() == ["a"]


def test_an_excerpt_holds_whole_lines(tmp_path: Path) -> None:
    entries = [f"entry {number:04d}" for number in range(100)]
    path = written(tmp_path / "a.jsonl", "".join(json.dumps({"text": entry}) + "\n" for entry in entries))
    documents = open_documents(path)
    width = documents.nbytes // 100
    assert documents.excerpt(0, 3 * width) == entries[:3]
    assert documents.excerpt(width + 1, 3 * width) == entries[2:5]
    assert documents.excerpt(width, 3 * width) == entries[1:4]
    assert documents.excerpt(5 * width, 4) == [entries[5]], (
        "a line longer than the excerpt is read to its end"
    )
    assert documents.excerpt(documents.nbytes - 3, 2 * width) == entries[:2], (
        "after the last line: from the start"
    )


def test_an_excerpt_of_text_drops_cut_characters(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "äöü")
    assert open_documents(path).excerpt(1, 4) == ["ö"]


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": ', r"Line 2 of .* is no JSON"),
        ("a.jsonl", '{"text": \n{"text": "a"}', r"Line 1 of .* is no JSON"),
        ("a.json", '[{"text": "a"},\n', r"a.json is no JSON"),
        ("a.jsonl", "[" * 100_000, "is no JSON"),
        ("a.json", "[1, " + "1" * 5000 + "]", "is no JSON that can be read"),
        ("a.jsonl", b'{"text": "\xff"}\n', r"not UTF-8 \(byte 10\)"),
        ("a.txt", "x".encode("utf-16"), "not UTF-8"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: Any, match: str) -> None:
    path = written(tmp_path / name, content)
    with pytest.raises(UserError, match=match) as refused:
        open_documents(path).all()
    assert len(str(refused.value)) < 400


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path / "nul\0.txt", tmp_path / ("long" * 100 + ".jsonl")):
        with pytest.raises(UserError, match="cannot be read"):
            open_documents(path)
