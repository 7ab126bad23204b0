"""Building the C++ kernels: a build that was killed does not block the next one, and two builds wait for each other."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from compress_kernels import native
from torch.utils import cpp_extension

fcntl = pytest.importorskip("fcntl")


def _hold(path: Path, ready: Any, done: Any) -> None:
    with native._one_at_a_time(path):
        ready.set()
        done.wait(30)


def _free(path: Path) -> bool:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_a_killed_build_does_not_block_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    folders: list[Path] = []

    def load(**options: Any) -> None:
        folder = Path(options["build_directory"])
        assert not (folder / "lock").exists()
        assert all(Path(source).parent == folder for source in options["sources"])
        assert not _free(folder / "building")
        (folder / "lock").touch()  # as torch leaves it when it is killed
        folders.append(folder)

    monkeypatch.setattr(cpp_extension, "load", load)
    native._build()
    native._build()
    assert folders[0] == folders[1]
    assert tmp_path in folders[0].parents
    assert _free(folders[0] / "building")


def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "building", ready, done))
    process.start()
    assert ready.wait(60)
    assert not _free(tmp_path / "building")
    process.kill()
    process.join(30)
    assert _free(tmp_path / "building")
