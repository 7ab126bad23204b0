"""Holdout: how often a text was asked, by this output and by those beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compress.checkpoint.writer import REPORT
from compress.diagnose.base import Cell, Finding
from compress.evaluation.holdout import optimism, read_asked

NAME = "holdout"


def is_asked(folder: Path) -> bool:
    """Whether an output was measured on any text."""
    return bool(read_asked(folder))


def finding(folder: Path) -> Finding:
    """How often each text was asked.

    Args:
        folder: of an output; those of the same model in the folder around it are counted, too.
    """
    source = _source(folder)
    beside = [other for other in sorted(folder.resolve().parent.iterdir()) if _source(other) == source]
    asked = [read_asked(other) for other in beside]
    found = []
    for digest, one in read_asked(folder).items():
        outputs = sum(digest in other for other in asked)
        found.append((str(one["text"]), int(one["asked"]), outputs, optimism(outputs), digest[:12]))
    found.sort(key=lambda row: -row[2])
    text, _, outputs, errors, _ = found[0]
    rows: tuple[tuple[Cell, ...], ...] = tuple(found)
    advice = (
        f"{outputs} outputs were measured on {text}: the best of them may look better by {errors:.1f} standard errors, "
        "so choose on it and report on a text that was not asked."
        if outputs > 1
        else f"One output was measured on {text}: nothing was chosen by it."
    )
    columns = (
        "text",
        "asked by this output",
        "outputs asked",
        "best looks better by, standard errors",
        "SHA-256",
    )
    return Finding(NAME, "How often a text was asked", columns, rows, advice)


def _source(folder: Path) -> dict[str, Any] | None:
    """The model that an output was made from; None for what is no output."""
    try:
        return dict(json.loads((folder / REPORT).read_text(encoding="utf-8"))["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
