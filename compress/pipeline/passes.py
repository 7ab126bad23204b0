"""Folders of the passes before blocks are solved: width pruning and the sensitivity pass, which go on where they were."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compress.checkpoint.differences import differences
from compress.errors import UserError
from compress.system.monitor import Monitor, added
from compress.system.scratch import discard, is_scratch, resumable_folder

_SETTINGS, _TIMES = "settings.json", "times.json"


def pass_folders(out: Path) -> dict[str, Path]:
    """The folders beside an output, by the name of the pass; they are gone when the output is finished."""
    out = out.resolve()
    return {
        name: out.with_name(f"{out.name}.partial.{name}")
        for name in ("experts", "width", "rotation", "sensitivity")
    }


@contextlib.contextmanager
def pass_folder(folder: Path, settings: Mapping[str, Any], monitor: Monitor | None = None) -> Iterator[Path]:
    """Make a pass's folder, or take over one that an earlier run left (:func:`compress.system.scratch.resumable_folder`).

    Args:
        folder: where.
        settings: of the run, for :func:`check_passes`.
        monitor: of the run; what an interrupted run has spent is kept in the folder and counted by the one that goes on.
    """
    with resumable_folder(folder):
        (folder / _SETTINGS).write_text(json.dumps(settings, default=str), encoding="utf-8")
        earlier = _times(folder)
        if monitor is not None:
            monitor.restore(earlier)
        try:
            yield folder
        except BaseException:
            if monitor is not None:
                (folder / _TIMES).write_text(json.dumps(added(earlier, monitor.record())), encoding="utf-8")
            raise


def check_passes(folders: Mapping[str, Path], settings: Mapping[str, Any], *, restart: bool) -> None:
    """Refuse to begin anew what an earlier run of other settings has got some way with; with ``restart`` delete it.

    Raises:
        UserError: there is such a pass; the sentence says what differs.
    """
    for folder in folders.values():
        if not is_scratch(folder):
            continue
        what = differences(_recorded(folder), json.loads(json.dumps(settings, default=str)))
        if what and restart:
            discard(folder)
        elif what:
            raise UserError(
                f"{folder} holds the unfinished pass of another run (what differs: {what}): go on with the command that "
                "began it, choose another output, or discard it with --restart."
            )


def discard_passes(folders: Mapping[str, Path]) -> None:
    """Delete what earlier runs into the same output have left."""
    for folder in folders.values():
        discard(folder)


def _times(folder: Path) -> dict[str, float]:
    """What earlier runs have recorded; nothing where the file is missing or damaged."""
    try:
        data = json.loads((folder / _TIMES).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    sound = isinstance(data, dict) and all(type(value) in (int, float) for value in data.values())
    return data if sound else {}


def _recorded(folder: Path) -> Mapping[str, Any]:
    try:
        data = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
