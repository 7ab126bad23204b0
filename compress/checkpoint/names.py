"""How a checkpoint is named: a folder, a file, a name on the hub, or the model that ships here; torch is not imported."""

from __future__ import annotations

import os
from pathlib import Path

from compress.assets import EMBEDDED
from compress.errors import UserError


def is_path(name: str) -> bool:
    """Whether a name can only be a path of this machine, not a name on the hub."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or not name.strip()


def check_exists(name: str) -> None:
    """Look for a checkpoint that is named by a path; a name on the hub is not looked up.

    Raises:
        UserError: there is nothing at that path.
    """
    if name == EMBEDDED or not is_path(name):
        return
    if not name.strip() or not os.path.exists(os.path.expanduser(name)):
        raise UserError(f"There is no folder {name!r}; give the folder of a checkpoint or a name on the hub.")


def check_folder(path: Path) -> None:
    """Look for the folder of a finished checkpoint.

    Raises:
        UserError: it is not there, or is a file.
    """
    if path.is_file():
        raise UserError(f"{path} is a file; give the folder of the checkpoint.")
    if not path.is_dir():
        raise UserError(f"There is no folder '{path}'; give the folder of a finished checkpoint.")
