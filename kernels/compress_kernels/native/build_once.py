"""A library that is built once for all processes of a machine, whatever becomes of the process that builds it.

It is built in a private folder and renamed into its place, so that a file with its name is always whole. The lock belongs to
the operating system, which lifts it when its owner ends, killed or not.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout  # torch needs it, too

_PRIVATE = ".building-"


def load_or_build(
    library: Path, load: Callable[[Path], None], build: Callable[[Path], Path], *, patience: float = 900.0
) -> None:
    """Load ``library``; where it is missing or cannot be loaded, build it first.

    What takes long is said on stderr: that it is built here, or which process is waited for.

    Args:
        library: the file; its folder is made, and holds nothing else but the lock.
        load: loads a library; raises ``OSError`` where the file is damaged.
        build: builds the library in the empty folder that it is given, loads it, and returns its file.
        patience: seconds to wait for another process that builds it.

    Raises:
        TimeoutError: another process has been building for longer than ``patience``.
    """
    if _loaded(library, load):
        return
    library.parent.mkdir(parents=True, exist_ok=True)
    with _lock(library.parent, patience):
        if _loaded(library, load):  # somebody else has built it meanwhile
            return
        for left in library.parent.glob(f"{_PRIVATE}*"):  # of builds that were killed
            shutil.rmtree(left, ignore_errors=True)
        _say("building the CPU kernels for this machine, once; this takes about a minute")
        private = Path(tempfile.mkdtemp(prefix=_PRIVATE, dir=library.parent))
        try:
            made = build(private)
            whole = private / f"{library.name}.whole"
            shutil.copy2(made, whole)
            os.replace(whole, library)
        finally:
            shutil.rmtree(private, ignore_errors=True)


def _loaded(library: Path, load: Callable[[Path], None]) -> bool:
    if not library.is_file():
        return False
    try:
        load(library)
    except OSError as error:
        _say(f"{library} cannot be loaded ({str(error).splitlines()[0][:200]}); it is built again")
        return False
    return True


def _lock(folder: Path, patience: float) -> FileLock:
    """The lock of ``folder``, held; leaving it as a context lifts it. The owner's process id stands beside it."""
    file, owner = folder / "build.lock", folder / "owner"
    lock = FileLock(file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        _say(f"waiting for process {_read(owner)}, which builds the CPU kernels")
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            raise TimeoutError(
                f"process {_read(owner)} has held {file} for more than {patience:.0f} s"
            ) from None
    owner.write_text(str(os.getpid()), encoding="ascii")
    return lock


def _read(owner: Path) -> str:
    try:
        return owner.read_text(encoding="ascii")
    except OSError:
        return "(unknown)"


def _say(sentence: str) -> None:
    print(f"compress_kernels: {sentence}", file=sys.stderr, flush=True)
