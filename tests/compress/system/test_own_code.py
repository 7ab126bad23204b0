"""The hash of the code: of what the files say and how they are named, nothing else."""

from __future__ import annotations

from pathlib import Path

from compress.system.own_code import _contents, own_code


def test_it_is_the_same_as_long_as_nothing_changes() -> None:
    assert own_code() == own_code()
    assert len(own_code()) == 32


def test_every_file_of_code_counts(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "one.py").write_text("a = 1")
    found = [_contents(tmp_path)]
    for name, text in (("inner/one.py", "a = 2"), ("two.cpp", "int a;"), ("inner/three.py", "")):
        (tmp_path / name).write_text(text)
        found.append(_contents(tmp_path))
    (tmp_path / "two.cpp").rename(tmp_path / "four.cpp")
    found.append(_contents(tmp_path))
    assert len(set(found)) == len(found)
    (tmp_path / "inner" / "one.pyc").write_text("cached")
    assert _contents(tmp_path) == found[-1]
