"""The table of what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.common import megabytes, table
from benchmarks.frontier.cells import CELLS

Runs = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Cell → seed → what was measured."""


def medians(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The medians over seeds of what was measured for one cell, as far as every seed has it."""
    rows = list(runs.values())
    shared = [key for key in rows[0] if all(key in row for row in rows)]
    return {key: statistics.median(row[key] for row in rows) for key in shared}


def frontier_table(runs: Runs) -> str:
    """The table of recorded cells, those of one base below each other; medians over the seeds that were run.

    A healed cell is held against the base that it was made of, which may have been measured anew since.
    """
    heads = ["", "seeds", "KL", "±", "÷ base", "top-1", "perplexity", "MB", "processor s", "peak MB"]
    known = [name for name in CELLS if name in runs]
    by_base = sorted(known, key=lambda name: (known.index(CELLS[name].base or name), name))
    rows = {name: medians(runs[name]) for name in known}
    return table(
        heads,
        [
            [
                name,
                len(runs[name]),
                row["kl"],
                row["kl_error"],
                _over_base(row, rows.get(CELLS[name].base)),
                row["top1"],
                row["perplexity"],
                megabytes(int(row["bytes"])),
                round(row["cpu_seconds"]),
                round(row["peak_bytes"] / 1e6),
            ]
            for name, row in ((name, rows[name]) for name in by_base)
        ],
    )


def _over_base(row: Mapping[str, float], base: Mapping[str, float] | None) -> float | None:
    before = row.get("base_kl", None if base is None else base["kl"])
    return None if before is None else row["kl"] / before
