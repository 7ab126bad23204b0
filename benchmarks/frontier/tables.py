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
    """The medians over seeds of what was measured for one cell."""
    rows = list(runs.values())
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def frontier_table(runs: Runs) -> str:
    """The table of recorded cells, those of one base below each other; medians over the seeds that were run."""
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
                row["kl"] / rows[CELLS[name].base]["kl"] if CELLS[name].base in rows else None,
                row["top1"],
                row["perplexity"],
                megabytes(int(row["bytes"])),
                round(row["cpu_seconds"]),
                round(row["peak_bytes"] / 1e6),
            ]
            for name, row in ((name, rows[name]) for name in by_base)
        ],
    )
