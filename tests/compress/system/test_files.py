"""Files for people are written whole or not at all, and nothing of anybody else's is written over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from compress.errors import UserError
from compress.system.files import check_place, write_text

MARK = "<ours>"


def test_a_new_file_and_one_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_text(path, f"{MARK} ä", mark=MARK)
    assert path.read_text(encoding="utf-8") == f"{MARK} ä"
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    write_text(path, f"{MARK} again", mark=MARK)
    assert path.read_text() == f"{MARK} again"
    assert list(tmp_path.iterdir()) == [path]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    target, link = tmp_path / "thesis.tex", tmp_path / "report.html"
    target.write_text(f"{MARK} ten years")
    link.symlink_to(target)
    with pytest.raises(UserError, match="is a link to .*thesis.tex"):
        write_text(link, MARK, mark=MARK)
    assert target.read_text() == f"{MARK} ten years"
    assert link.is_symlink()


@pytest.mark.parametrize("content", [b"mine", b"\xff\xfe\0", b" " * 10_000 + MARK.encode()])
def test_somebody_elses_file_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "report.html"
    path.write_bytes(content)
    with pytest.raises(UserError, match="was not written by compress"):
        write_text(path, MARK, mark=MARK)
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["missing/report.html", "file/report.html", "x" * 300, "nul\0"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_text(tmp_path / name, MARK, mark=MARK)


def test_a_folder_is_refused_and_a_failed_write_leaves_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="is no file"):
        write_text(tmp_path, MARK, mark=MARK)
    path = tmp_path / "report.html"
    write_text(path, f"{MARK} old", mark=MARK)
    with pytest.raises(UserError, match="cannot be written"):
        write_text(path, f"{MARK} \ud800", mark=MARK)
    assert path.read_text() == f"{MARK} old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_is_refused_before_the_work(tmp_path: Path) -> None:
    check_place(tmp_path / "new", mark=MARK)
    theirs = tmp_path / "theirs"
    theirs.write_text("notes")
    for path in (tmp_path / "no" / "new", theirs / "new", theirs, tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="name another"):
            check_place(path, mark=MARK)
    assert theirs.read_text() == "notes"
