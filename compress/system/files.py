"""Text files for people, written so that nothing of anybody else's is lost: whole or not at all, never through a link."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from compress.errors import UserError

_BEGINNING = 4096


def write_text(path: str | Path, text: str, *, mark: str) -> None:
    """Write a file, or replace one that we have written.

    Args:
        path: the file; its folder must exist.
        text: the contents, in UTF-8; holds ``mark`` near its beginning.
        mark: by which a file of ours is known.

    Raises:
        UserError: there is a file of somebody else's, a folder or a link of that name, or it cannot be written.
    """
    path = Path(path)
    try:
        _check(path, mark)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:80]}.", dir=path.parent)
        beside = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            beside.chmod(0o666 & ~_umask())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be written ({reason}): name another file.") from error


def check_place(path: str | Path, *, mark: str) -> None:
    """Refuse what :func:`write_text` would refuse, before the work whose result is to be written.

    Raises:
        UserError: there is a file of somebody else's, a folder or a link of that name, or nothing can be written in its folder.
    """
    path = Path(path)
    try:
        _check(path, mark)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be written ({reason}): name another file.") from error
    if not os.path.isdir(path.parent):
        raise UserError(f"{path} cannot be written (there is no folder {path.parent}): name another file.")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path} cannot be written (its folder is read-only): name another file.")


def _check(path: Path, mark: str) -> None:
    if path.is_symlink():
        raise UserError(f"{path} is a link to {path.readlink()}: remove the link or name another file.")
    if not path.exists():
        return
    if not path.is_file():
        raise UserError(f"{path} is no file: name another one.")
    with path.open(encoding="utf-8", errors="replace") as file:
        if mark not in file.read(_BEGINNING):
            raise UserError(f"{path} was not written by compress: remove it yourself or name another file.")


def _umask() -> int:
    """The process's mask for new files; the only way to read it is to set it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
