"""The output folder as a whole: may it be written, who holds it, and how it takes its final name."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from compress.errors import UserError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG}


class DiskFull(UserError):
    """There is no room for the output."""


@contextlib.contextmanager
def disk_errors(out: Path, needed: int) -> Iterator[None]:
    """Turn a full or read-only disk into one sentence; ``needed`` is the size of the output in bytes."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DiskFull(
                f"{out}: no room for the output, which takes {_gigabytes(needed)} ({_free(out)}): "
                "free some space, raise the file size limit, or write to another disk"
            ) from error
        if error.errno in _REFUSED:
            raise UserError(
                f"{out}: cannot be written ({os.strerror(error.errno)}): choose another output"
            ) from error
        raise


def check_output(out: Path, source: Path, overwrite: bool) -> None:
    """Raise :class:`UserError` unless ``out`` may be written; touches nothing."""
    source = source.resolve()
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


def check_partial(partial: Path, out: Path) -> None:
    """Raise :class:`UserError` if a folder named like an unfinished output, without a journal, is somebody else's."""
    names = {path.name for path in partial.iterdir()}
    if "compress.json" not in names and any(not name.endswith((".safetensors", ".jsonl")) for name in names):
        raise UserError(
            f"{partial} is in the way of {out.name} and was not made by compress: rename or remove it"
        )


def empty(folder: Path) -> None:
    """Delete what ``folder`` holds, but not itself, so that a lock on it stays valid."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def replaced(out: Path) -> Path:
    """Where an earlier output stands while the new one takes its name."""
    return out.with_name(out.name + ".replaced")


def recover(out: Path) -> None:
    """Put back the earlier output if a run died between moving it aside and renaming the new one in."""
    aside = replaced(out)
    if aside.exists():
        if out.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(out)


def take_name(partial: Path, out: Path) -> None:
    """Rename the finished ``partial`` to ``out``; an earlier ``out`` is deleted only once the new one is in place."""
    aside = replaced(out)
    if out.exists():
        out.rename(aside)
    partial.rename(out)
    sync(out.parent)
    if aside.exists():
        shutil.rmtree(aside)


def sync(path: Path) -> None:
    """Make a file's contents, or a folder's names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free(out: Path) -> str:
    existing = next(path for path in (out, *out.parents) if path.exists())
    return f"{_gigabytes(shutil.disk_usage(existing).free)} are free"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10_000_000 else f"{count / 1e6:.2f} MB"
