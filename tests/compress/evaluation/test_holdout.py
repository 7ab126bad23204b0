from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest

from compress.evaluation.holdout import HOLDOUT, note_asked, optimism, read_asked, text_hash


def test_every_measurement_is_counted(tmp_path: Path) -> None:
    (tmp_path / "compress.json").touch()
    note_asked(tmp_path, {"a": "one.txt"})
    note_asked(tmp_path, {"a": "one.txt", "b": "two.txt"})
    assert read_asked(tmp_path) == {
        "a": {"text": "one.txt", "asked": 2},
        "b": {"text": "two.txt", "asked": 1},
    }


def test_other_folders_and_files_are_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    note_asked(tmp_path, {"a": "one.txt"})
    assert not (tmp_path / HOLDOUT).exists()
    (tmp_path / "compress.json").touch()
    (tmp_path / HOLDOUT).write_text("mine", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        note_asked(tmp_path, {"a": "one.txt"})
    assert (tmp_path / HOLDOUT).read_text(encoding="utf-8") == "mine"
    assert "not counted as asked" in caplog.text
    assert read_asked(tmp_path) == {}


def test_the_hash_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"abc")
    assert text_hash(path) == hashlib.sha256(b"abc").hexdigest()


def test_one_output_is_not_chosen() -> None:
    assert optimism(1) == 0.0
    assert optimism(10) == pytest.approx(2.146, abs=1e-3)
