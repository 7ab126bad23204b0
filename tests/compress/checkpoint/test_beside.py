"""Files beside the weights: copied where they were, and written whole."""

from __future__ import annotations

import json
from pathlib import Path

from compress.checkpoint.beside import copy_files, write_json, write_text


def test_files_keep_their_places_and_own_files_are_not_copied(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    (source / "more").mkdir(parents=True)
    out.mkdir()
    for name in ("tokenizer.json", "more/vocab.txt", "config.json"):
        (source / name).write_text(name)
    paths = [path for path in source.rglob("*") if path.is_file()]
    copy_files(paths, source, out, but=frozenset({"config.json"}))
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == [
        "more/vocab.txt",
        "tokenizer.json",
    ]
    assert (out / "more" / "vocab.txt").read_text() == "more/vocab.txt"


def test_json_is_for_people(tmp_path: Path) -> None:
    write_json(tmp_path / "one.json", {"b": "ü", "a": [1]})
    text = (tmp_path / "one.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"b": "ü", "a": [1]}
    assert "ü" in text
    assert text.startswith('{\n  "b"')
    assert text.endswith("}\n")
    write_text(tmp_path / "two", "ä")
    assert (tmp_path / "two").read_bytes() == "ä".encode()
