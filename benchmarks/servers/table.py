"""The table of the servers: what was measured, and what was not and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common import table

COMPRESS_ALONE = "read by compress alone"
"""Why a checkpoint was run in no server: no server claims to read its form."""
NOTE = 140
"""Characters of a note in the tables."""


def matrix_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Each row of the matrix."""
    head = (
        "model",
        "recipe",
        "format",
        "MB",
        "embeddings, head",
        "server",
        "perplexity, ours",
        "server's",
        "same top-1",
        "same text",
        "note",
    )
    return table(
        head, [(row["model"], row["recipe"], row["format"], *_sizes(row), *_figures(row)) for row in rows]
    )


def _short(note: str) -> str:
    """A note that leaves the table readable; the results hold the whole of it."""
    return note if len(note) <= NOTE else f"{note[: NOTE - 1]}…"


def _sizes(row: Mapping[str, Any]) -> tuple[object, ...]:
    """Megabytes of the weight files, and of the embeddings and the head in them."""
    sizes = (row.get("bytes"), row.get("bytes_outside"))
    return tuple(None if size is None else f"{size / 1e6:.1f}" for size in sizes)


def _figures(row: Mapping[str, Any]) -> tuple[object, ...]:
    server = " ".join(filter(None, (row["server"], row.get("version")))) or None
    if "perplexity" not in row:
        note = f"fails: {row['error']}" if "error" in row else row["not_run"]
        return server, None, None, None, None, _short(note.replace("|", "/"))
    figures = f"{row['perplexity_ours']:.2f}", f"{row['perplexity']:.2f}"
    return server, *figures, f"{row['top1']:.1%}", f"{row['greedy']:.0%}", None


FAMILIES: Mapping[str, str] = {
    "compressed-tensors": "compressed-tensors",
    "bitsandbytes": "bitsandbytes",
    "dense": "dense",
    "gptq": "GPTQ",
    "awq": "AWQ",
    "mlx": "MLX",
    "gguf": "GGUF",
}
"""Formats, in the order of the tables, as people write them."""


def served_by_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """By format and server: how many recipes it reads, how near it comes, what it refuses, and when that was measured."""
    cells: list[tuple[object, ...]] = []
    for format, label in FAMILIES.items():
        here = [row for row in rows if row["format"] == format and row["server"]]
        for server in sorted({row["server"] for row in here}):
            cells.append((label, *_summary(server, [row for row in here if row["server"] == server])))
    head = (
        "format",
        "server",
        "checkpoints read",
        "perplexity differs by",
        "same top-1",
        "not read",
        "measured",
    )
    return table(head, cells)


def _summary(server: str, rows: Sequence[Mapping[str, Any]]) -> tuple[object, ...]:
    """One server's answers to all checkpoints of a format."""
    read = [row for row in rows if "perplexity" in row]
    failed = sorted({row["recipe"] for row in rows if "error" in row})
    asked = [row for row in rows if "not_run" not in row]
    if not asked:
        return server, None, None, None, None, "not run"
    versions = ", ".join(sorted({str(row["version"]) for row in asked}))
    day = max(row["date"] for row in asked)
    if not read:
        return f"{server} {versions}", f"0 of {len(asked)}", None, None, ", ".join(failed), day
    apart = max(abs(row["perplexity"] / row["perplexity_ours"] - 1) for row in read)
    top1 = min(row["top1"] for row in read)
    said = f"at most {apart:.1%}" if apart >= 0.0005 else "less than 0.05%"
    refused = ", ".join(failed) or None
    return f"{server} {versions}", f"{len(read)} of {len(asked)}", said, f"at least {top1:.1%}", refused, day


def under_the_tables(rows: Sequence[Mapping[str, Any]], recipes: Sequence[str]) -> str:
    """Which recipes the tables do not have, and why: those in a form of our own, those that could not be made, those not run.

    Args:
        recipes: names of all that ship.
    """
    native, refused, missing = [], [], []
    for name in recipes:
        here = [row.get("not_run") for row in rows if row["recipe"] == name]
        if not here:
            missing.append(name)
        elif all(reason == COMPRESS_ALONE for reason in here):
            native.append(name)
        elif None not in here:
            refused.append(name)
    said = (
        ("Written in the native form, which Compress alone reads", native),
        ("Not written", refused),
        ("Recipes not run", missing),
    )
    return "".join(
        f"\n\n{what}: {', '.join(f'`{name}`' for name in names)}." for what, names in said if names
    )
