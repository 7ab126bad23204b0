"""Folders for intermediate files: gone with the run, swept after a killed one, kept where another run goes on with them."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from compress.errors import UserError
from compress.system.scratch import (
    MARK,
    discard,
    is_scratch,
    kept_folder,
    resumable_folder,
    scratch_folder,
    sweep,
)

KEPT: list[object] = []
"""Contexts that a killed process never leaves: a generator that nobody holds would be closed."""


def entered(context: AbstractContextManager[Path]) -> Path:
    KEPT.append(context)
    return context.__enter__()


def killed(action: Callable[[], object]) -> None:
    """Run ``action`` in a child that is killed at the end of it."""
    child = os.fork()
    if child == 0:
        action()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def test_it_is_gone_with_the_context(tmp_path: Path) -> None:
    with pytest.raises(KeyError), scratch_folder(tmp_path / "new", ".s-") as folder:
        (folder / "a").touch()
        raise KeyError
    assert list((tmp_path / "new").iterdir()) == []


def test_what_a_killed_run_left_is_swept_by_the_next(tmp_path: Path) -> None:
    killed(lambda: (entered(scratch_folder(tmp_path, ".s-")) / "large").touch())
    (left,) = tmp_path.iterdir()
    assert (left / "large").exists()
    with scratch_folder(tmp_path, ".s-") as folder:
        assert list(tmp_path.iterdir()) == [folder]


def test_others_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".s-theirs").mkdir()
    (tmp_path / ".s-theirs" / "thesis.tex").touch()
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / MARK).touch()
    (tmp_path / ".s-link").symlink_to(tmp_path / "target")
    with scratch_folder(tmp_path, ".s-") as used:
        assert sweep(tmp_path, ".s-") == []
        assert used.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".s-link", ".s-theirs", "target"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"), scratch_folder(tmp_path / "file", ".s-"):
        pass
    with pytest.raises(UserError, match="cannot be written"), resumable_folder(tmp_path / "file" / "x"):
        pass


def test_a_resumable_folder_stays_when_the_run_does_not_end_well(tmp_path: Path) -> None:
    folder = tmp_path / "out.partial.pass"
    with pytest.raises(KeyboardInterrupt), resumable_folder(folder):
        (folder / "block").touch()
        raise KeyboardInterrupt
    assert is_scratch(folder)
    killed(lambda: entered(resumable_folder(folder)))
    with resumable_folder(folder):
        assert (folder / "block").exists()
    assert not folder.exists()


def test_an_empty_one_does_not_stay(tmp_path: Path) -> None:
    folder = tmp_path / "out.partial.pass"
    with pytest.raises(KeyError), resumable_folder(folder):
        raise KeyError
    assert not folder.exists()


def test_somebody_elses_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "out.partial.pass"
    folder.mkdir()
    (folder / "thesis.tex").touch()
    with pytest.raises(UserError, match="was not made by compress"), resumable_folder(folder):
        pass
    discard(folder)
    assert (folder / "thesis.tex").exists()
    assert not is_scratch(folder)


def test_one_in_use_is_refused_and_not_discarded(tmp_path: Path) -> None:
    folder = tmp_path / "out.partial.pass"
    with resumable_folder(folder):
        with pytest.raises(UserError, match="another run"), resumable_folder(folder):
            pass
        discard(folder)
        assert folder.is_dir()


def test_a_kept_folder_lasts_as_long_as_somebody_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kept = kept_folder(".k-")
    (kept.path / "a").touch()
    assert kept.path.parent == tmp_path
    other = kept_folder(".k-")  # sweeps, and leaves what is in use
    assert (kept.path / "a").exists()
    first = kept.path
    del kept
    gc.collect()
    assert not first.exists()
    assert other.path.exists()


def test_a_kept_folder_of_a_killed_process_is_swept_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    killed(lambda: KEPT.append(kept_folder(".k-")))
    (left,) = tmp_path.iterdir()
    kept = kept_folder(".k-")
    assert list(tmp_path.iterdir()) == [kept.path]
    assert kept.path != left


def test_a_kept_folder_goes_with_the_process(tmp_path: Path) -> None:
    code = "from compress.system.scratch import kept_folder; kept = kept_folder('.k-'); print(kept.path.is_dir())"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"
    assert list(tmp_path.iterdir()) == []
