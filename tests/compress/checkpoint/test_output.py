"""Folders named like ours that are somebody else's are never touched, and a replacement that died half-way is ended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from compress.checkpoint.output import JOURNAL, MARK, check_replaced, claim, recover, replaced, take_name
from compress.errors import UserError


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    return tmp_path / "out.partial"


def folder(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).write_text(name)
    return path


def state(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@pytest.mark.parametrize(
    "names", [["a.safetensors"], ["journal.jsonl"], ["compress.json"], [".compress-output"]]
)
def test_an_unfinished_folder_without_our_mark_is_left_alone(
    out: Path, partial: Path, names: list[str]
) -> None:
    folder(partial, *names)
    before = state(partial.parent)
    with pytest.raises(UserError, match="in the way of out and was not made by compress"):
        claim(partial, out)
    assert state(partial.parent) == before


def test_links_and_files_in_its_place_are_left_alone(out: Path, partial: Path, tmp_path: Path) -> None:
    target = folder(tmp_path / "precious")
    partial.symlink_to(target)
    with pytest.raises(UserError, match="in the way"):
        claim(partial, out)
    partial.unlink()
    partial.write_text("mine")
    with pytest.raises(UserError, match="in the way"):
        claim(partial, out)
    assert partial.read_text() == "mine"


@pytest.mark.parametrize("names", [[], [MARK + ".new"], [MARK, "a.safetensors"]])
def test_ours_are_taken_over(out: Path, partial: Path, names: list[str]) -> None:
    folder(partial, *names)
    if MARK in names:
        (partial / MARK).write_text(json.dumps({"made_by": "compress"}))
    claim(partial, out)
    assert json.loads((partial / MARK).read_text()) == {"made_by": "compress"}
    assert not (partial / (MARK + ".new")).exists()


def test_a_journal_is_a_mark_too(out: Path, partial: Path) -> None:
    folder(partial, "a.safetensors")
    (partial / JOURNAL).write_text('{"version": 1, "fingerprint": "f"}\n')
    claim(partial, out)
    assert (partial / MARK).is_file()


def test_somebody_elses_replaced_folder_is_never_deleted(out: Path, partial: Path) -> None:
    theirs = folder(replaced(out), "thesis.tex")
    recover(partial, out)
    claim(partial, out)
    take_name(partial, out)
    assert (theirs / "thesis.tex").exists()
    recover(partial, out)
    assert state(out.parent) == ["out", "out.replaced", "out.replaced/thesis.tex"]
    with pytest.raises(UserError, match="in the way of replacing out"):
        check_replaced(out)
    claim(partial, out)
    with pytest.raises(UserError, match="in the way of replacing out"):
        take_name(partial, out)
    assert (theirs / "thesis.tex").exists()


def test_a_replacement_may_die_after_any_step(
    out: Path, partial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the new one has its name the old one comes back; after that the old one goes."""
    steps: list[str] = []
    rename, rmtree, unlink = Path.rename, shutil.rmtree, Path.unlink

    def counted(name: str, real: object):
        def call(*arguments: object, **options: object) -> object:
            if len(steps) == limit:
                raise KeyboardInterrupt
            steps.append(name)
            return real(*arguments, **options)

        return call

    monkeypatch.setattr(Path, "rename", counted("rename", rename))
    monkeypatch.setattr(shutil, "rmtree", counted("rmtree", rmtree))
    monkeypatch.setattr(Path, "unlink", counted("unlink", unlink))
    for fatal in range(20):
        steps.clear()
        limit = 1000
        for path in (out, partial, replaced(out)):
            if path.exists():
                rmtree(path)
        folder(out, "config.json", "old")
        claim(partial, out)
        (partial / "new").touch()
        (partial / JOURNAL).touch()
        steps.clear()
        limit = fatal
        try:
            take_name(partial, out)
        except KeyboardInterrupt:
            limit = 1000
            recover(partial, out)
            recover(partial, out)
        else:
            break
        finished = (out / "new").exists()
        assert finished is not (out / "old").exists()
        assert not replaced(out).exists()
        assert not (out / MARK).exists()
        assert not (out / JOURNAL).exists()
        assert partial.exists() is not finished
    assert fatal > 4
    assert state(out.parent) == ["out", "out/new"]


def test_a_folder_made_meanwhile_is_not_taken_for_the_new_output(out: Path, partial: Path) -> None:
    folder(out, "old")
    claim(partial, out)
    status = out.stat()
    (partial / MARK).write_text(
        json.dumps({"made_by": "compress", "replaces": [status.st_dev, status.st_ino]})
    )
    out.rename(replaced(out))
    folder(out, "theirs")
    recover(partial, out)
    assert (replaced(out) / "old").exists()
    assert (out / "theirs").exists()
