"""What an output holds beside its weights: files that the source has, and texts of its own, on disk once a call returns."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import output


def copy_files(paths: Iterable[Path], root: Path, folder: Path, *, but: frozenset[str]) -> None:
    """Copy files of the folder ``root`` to the same places in ``folder``, all ``but`` those of these names."""
    for path in paths:
        relative = path.relative_to(root)
        if str(relative) in but:
            continue
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        output.sync(target)


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    path.write_text(text, encoding="utf-8")
    output.sync(path)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file that people can read."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
