"""Folders for intermediate files beside the output: gone with the run, or swept away by the next one if it was killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from compress.errors import DamagedSourceError, UserError

MARK = ".compress-scratch"
"""The file that says that a folder is ours; the run that uses the folder holds a lock on it."""


@contextlib.contextmanager
def scratch_folder(near: Path, prefix: str) -> Iterator[Path]:
    """Make a temporary folder in ``near``, whose name begins with ``prefix``; it is deleted on leaving the context.

    Folders of the same prefix that a killed run left behind are deleted first: those that hold :data:`MARK`, with no process
    that holds its lock.

    Raises:
        UserError: ``near`` cannot be written.
    """
    try:
        near.mkdir(parents=True, exist_ok=True)
        sweep(near, prefix)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=near))
    except OSError as error:
        raise UserError(
            f"{near}: cannot be written ({error.strerror or error}): choose another folder"
        ) from error
    descriptor = os.open(folder / MARK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _locked(descriptor)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


@dataclass(frozen=True, eq=False)
class KeptFolder:
    """A temporary folder that lasts as long as this object, or as the process."""

    path: Path


def kept_folder(prefix: str) -> KeptFolder:
    """Make a folder in the system's temporary folder that is deleted when nothing refers to the result any more, or at exit.

    What a killed process left under the same prefix is deleted first, as by :func:`scratch_folder`.

    Raises:
        UserError: the temporary folder cannot be written.
    """
    stack = contextlib.ExitStack()
    kept = KeptFolder(stack.enter_context(scratch_folder(Path(tempfile.gettempdir()), prefix)))
    weakref.finalize(kept, stack.close)
    return kept


@contextlib.contextmanager
def resumable_folder(folder: Path) -> Iterator[Path]:
    """Make a folder for intermediate files that another run can go on with, or take over one that an earlier run left.

    It is deleted when the context ends well or by a damaged source, and stays, if it holds anything, when that ends by another
    exception or a kill.

    Raises:
        UserError: the folder is somebody else's, in use, or cannot be written.
    """
    if folder.is_symlink() or (folder.exists() and not _may_be_taken(folder)):
        raise UserError(f"{folder} is in the way and was not made by compress: rename or remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / MARK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}): choose another output"
        ) from error
    if not _locked(descriptor):
        os.close(descriptor)
        raise UserError(f"{folder} is being written by another run: wait for it or choose another output")
    try:
        yield folder
    except BaseException as error:
        if isinstance(error, DamagedSourceError) or not is_scratch(folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def is_scratch(folder: Path) -> bool:
    """Whether a folder carries the mark and holds anything else."""
    return (
        not folder.is_symlink()
        and (folder / MARK).is_file()
        and any(p.name != MARK for p in folder.iterdir())
    )


def discard(folder: Path) -> None:
    """Delete a folder of :func:`resumable_folder` that nobody goes on with; another's is left alone."""
    if not folder.is_symlink() and (folder / MARK).is_file() and _is_free(folder / MARK):
        shutil.rmtree(folder, ignore_errors=True)


def sweep(near: Path, prefix: str) -> list[Path]:
    """Delete the scratch folders of dead runs; returns them. A folder without the mark, or in use, is left alone."""
    gone = []
    for folder in sorted(near.glob(f"{prefix}*")):
        if folder.is_symlink() or not (folder / MARK).is_file() or not _is_free(folder / MARK):
            continue
        shutil.rmtree(folder, ignore_errors=True)
        gone.append(folder)
    return gone


def _may_be_taken(folder: Path) -> bool:
    return folder.is_dir() and ((folder / MARK).is_file() or not any(folder.iterdir()))


def _locked(descriptor: int) -> bool:
    """Take the lock; false if another process holds it. A file system without locks counts as locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_free(mark: Path) -> bool:
    """Whether no process holds the lock; where locks are unknown, nothing counts as free."""
    try:
        descriptor = os.open(mark, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
