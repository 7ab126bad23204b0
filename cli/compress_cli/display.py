"""Figures as people read them, and JSON as scripts do."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from compress_cli.status import results_follow

EIGHTHS = "▏▎▍▌▋▊▉█"


def bar(share: float, width: int = 20) -> str:
    """Return a horizontal bar, `share` (0 to 1) of `width` characters, to an eighth of a character."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (EIGHTHS[rest - 1] if rest else "")


def table(
    title: str | None,
    columns: Mapping[str, str],
    rows: Iterable[Sequence[str | Text]],
    console: Console | None = None,
) -> None:
    """Print a table, on stdout unless there is another console.

    Args:
        title: a line above it, or None.
        columns: heading → `left`, `right` or `fold` (left, and long text goes on the next line).
        rows: one sequence of cells a row, as long as `columns`.
    """
    grid = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        header_style="dim",
        pad_edge=False,
    )
    for heading, how in columns.items():
        justify = "right" if how == "right" else "left"
        grid.add_column(heading, justify=justify, no_wrap=how != "fold", overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        # As text: the brackets of a name or a pattern are not markup.
        grid.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    (console or screen()).print(grid)


def screen() -> Console:
    """Return the console on stdout; wide where stdout is a file, so that nothing is cut."""
    results_follow()
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout: dataclasses, paths and enumerations included, NaN and infinity as null."""
    results_follow()
    json.dump(plain(value), sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")


def plain(value: Any) -> Any:
    """Return a value as JSON's own types."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value.value if isinstance(value, Enum) else value
    if hasattr(value, "to_json"):
        return plain(value.to_json())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    return str(value)
