"""The table of the servers: what was measured, and what was not and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common import table


def matrix_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Each row of the matrix."""
    head = (
        "model",
        "recipe",
        "format",
        "server",
        "perplexity, ours",
        "server's",
        "same top-1",
        "same text",
        "note",
    )
    return table(head, [(row["model"], row["recipe"], row["format"], *_figures(row)) for row in rows])


def _figures(row: Mapping[str, Any]) -> tuple[object, ...]:
    server = " ".join(filter(None, (row["server"], row.get("version")))) or None
    if "perplexity" not in row:
        note = f"fails: {row['error']}" if "error" in row else row["not_run"]
        return server, None, None, None, None, note.replace("|", "/")
    figures = f"{row['perplexity_ours']:.2f}", f"{row['perplexity']:.2f}"
    return server, *figures, f"{row['top1']:.1%}", f"{row['greedy']:.0%}", None
