"""The output folder as a whole: may it be written, who holds it, and how it takes its final name."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compress.checkpoint.journal import is_journal
from compress.errors import UserError
from compress.system.units import in_bytes

JOURNAL = "journal.jsonl"
_NEW_MARK = ".compress-output.new"
MARK = ".compress-output"
"""The file that says that a folder is an unfinished output of ours; removed once the output is finished."""

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskFull(UserError):
    """There is no room for the output."""


@contextlib.contextmanager
def disk_errors(out: Path, needed: int) -> Iterator[None]:
    """Turn a full, read-only or broken disk into one sentence; ``needed`` is the size of the output in bytes."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DiskFull(
                f"{out}: no room for the output, which takes {in_bytes(needed)} ({_free(out)}): "
                "free some space, raise the file size limit, or write to another disk"
            ) from error
        raise UserError(
            f"{str(out)[:200]}: cannot be written ({error.strerror or error}): choose another output"
        ) from error


def check_output(out: Path, source: Path, overwrite: bool) -> None:
    """Raise :class:`UserError` unless ``out`` may be written; touches nothing."""
    try:
        _check_output(out, source.resolve(), overwrite)
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise UserError(
            f"{str(out)[:200]}: cannot be written ({error.strerror}): choose another output"
        ) from error


def _check_output(out: Path, source: Path, overwrite: bool) -> None:
    if out == source or out.is_relative_to(source) or source.is_relative_to(out):
        raise UserError(
            f"{out}: the output must be a folder apart from the source {source}: choose another name"
        )
    if not out.exists():
        return
    if not overwrite:
        raise UserError(f"{out} already exists: choose another output, or allow overwriting it (--overwrite)")
    if not out.is_dir():
        raise UserError(f"{out} is a file: the output must be a folder, choose another name")
    if any(out.iterdir()) and not (out / "config.json").exists():
        raise UserError(
            f"{out} is not a checkpoint and will not be overwritten: remove it yourself or choose another"
        )


def lock(folder: Path) -> int:
    """Hold ``folder`` for this process; returns the file descriptor that keeps the lock."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(
            f"{folder} is being written by another run: wait for it or choose another output"
        ) from None
    except OSError:
        pass  # a file system without locks: nothing to hold
    return descriptor


def claim(partial: Path, out: Path) -> int:
    """Make the folder of an unfinished output, or take over one that an earlier run left; returns what keeps its lock.

    A folder is taken over that is empty, holds our mark, or a journal. Anybody else's is left alone.

    Raises:
        UserError: the folder is somebody else's, or another run is writing it.
    """
    in_the_way = UserError(
        f"{partial} is in the way of {out.name} and was not made by compress: rename or remove it"
    )
    if partial.is_symlink() or (partial.exists() and not partial.is_dir()):
        raise in_the_way
    partial.mkdir(exist_ok=True)
    descriptor = lock(partial)
    if not _is_ours(partial):
        os.close(descriptor)
        raise in_the_way
    (partial / _NEW_MARK).unlink(missing_ok=True)
    if _read_mark(partial) is None:
        _write_mark(partial, {})
    return descriptor


def empty(folder: Path) -> None:
    """Delete what ``folder`` holds but the mark, and not the folder itself, so that a lock on it stays valid."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARK:
            path.unlink()


def replaced(out: Path) -> Path:
    """Where an earlier output stands while the new one takes its name."""
    return out.with_name(out.name + ".replaced")


def check_replaced(out: Path) -> None:
    """Raise :class:`UserError` if an earlier ``out`` could not be moved aside, since that place is taken."""
    if _exists(out) and _exists(replaced(out)):
        raise UserError(
            f"{replaced(out)} is in the way of replacing {out.name} and was not made by compress: rename or remove it"
        )


def recover(partial: Path, out: Path) -> None:
    """End what a run began that died while it replaced an earlier output.

    The earlier output, moved aside by that run, gets its name back if the new one has not taken it, and is deleted if it has.
    It is known by its number on the file system, which the run's mark holds. Anything else of that name is left alone.
    """
    aside = replaced(out)
    if not out.is_symlink() and (out / MARK).is_file():  # renamed, but not yet cleaned up
        if _replaces(out, aside):
            shutil.rmtree(aside)
        _clean(out)
    elif not _exists(out) and _replaces(partial, aside):
        aside.rename(out)


def take_name(partial: Path, out: Path) -> None:
    """Rename the finished ``partial`` to ``out``; an earlier ``out`` is deleted only once the new one is in place.

    Raises:
        UserError: an earlier ``out`` cannot be moved aside.
    """
    check_replaced(out)
    aside = replaced(out)
    moved = out.exists()
    if moved:
        status = out.stat()
        _write_mark(partial, {"replaces": [status.st_dev, status.st_ino]})
        out.rename(aside)
    partial.rename(out)
    sync(out.parent)
    if moved:
        shutil.rmtree(aside)
    _clean(out)


def _clean(out: Path) -> None:
    """Remove what only an unfinished output holds; the mark last, so that this can be ended by another run."""
    (out / JOURNAL).unlink(missing_ok=True)
    (out / MARK).unlink(missing_ok=True)


def _is_ours(partial: Path) -> bool:
    # A run that died before it had written its mark has left nothing else.
    if {path.name for path in partial.iterdir()} <= {_NEW_MARK}:
        return True
    return _read_mark(partial) is not None or is_journal(partial / JOURNAL)


def _replaces(folder: Path, aside: Path) -> bool:
    """Whether the mark in ``folder`` says that ``aside`` is the output that it takes the place of."""
    if aside.is_symlink() or not aside.is_dir():
        return False
    status = aside.stat()
    return (_read_mark(folder) or {}).get("replaces") == [status.st_dev, status.st_ino]


def _write_mark(folder: Path, data: Mapping[str, Any]) -> None:
    beside = folder / _NEW_MARK
    beside.write_text(json.dumps({"made_by": "compress", **data}) + "\n", encoding="utf-8")
    sync(beside)
    beside.rename(folder / MARK)


def _read_mark(folder: Path) -> dict[str, Any] | None:
    try:
        data = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) and data.get("made_by") == "compress" else None


def _exists(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def sync(path: Path) -> None:
    """Make a file's contents, or a folder's names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free(out: Path) -> str:
    existing = next(path for path in (out, *out.parents) if path.exists())
    return f"{in_bytes(shutil.disk_usage(existing).free)} are free"
