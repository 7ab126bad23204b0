"""A text that could not be read later is refused before any other work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from compress.errors import UserError
from compress.pipeline import steps
from compress.text import check
from compress.text.check import check_text, check_text_file


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gone.txt", None, "no text file"),
        ("empty.txt", b" \n", "is empty"),
        ("latin.txt", "caf\u00e9".encode("latin-1"), "not UTF-8"),
        ("cut.jsonl", b'{"text": "a"}\n{"text": ', "Line 2 of .* is no JSON"),
        ("none.jsonl", b"", "is empty"),
    ],
)
def test_texts_that_cannot_be_read(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    text = tmp_path / name
    if content is not None:
        text.write_bytes(content)
    with pytest.raises(UserError, match=words):
        check_text(str(text))
    with pytest.raises(UserError):
        check_text_file(text)
    with pytest.raises(UserError, match=words):
        steps.plan(tmp_path / "no model", "w4-gptq", data=str(text))


def test_texts_that_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word")
    (tmp_path / "b.jsonl").write_text('{"text": "word"}\n')
    for text in ("embedded", "prose", str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")):
        check_text(text)
        check_text_file(text)


def test_of_a_large_file_the_beginning_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "PEEK", 30)
    text = tmp_path / "a.jsonl"
    text.write_text('{"text": "word"}\n' * 9 + "no JSON")
    check_text(str(text))
    text.write_text("no JSON\n" * 9)
    with pytest.raises(UserError, match="no JSON"):
        check_text(str(text))


def test_a_dataset_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", check)
    check_text("some/dataset")
    monkeypatch.delitem(sys.modules, "datasets")
    monkeypatch.setattr(check, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"compress-llm\[hub\]"):
        check_text("some/dataset")
