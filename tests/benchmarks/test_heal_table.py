"""The table of healing's entries: each beside its null, at rates and seeds that both have."""

from __future__ import annotations

from typing import Any

from benchmarks.heal import Cell
from benchmarks.heal_table import compared, table, verdict

NULL = Cell("w2", ["norms"])
LOSS = Cell("w2", ["norms"], {"loss": "bd"})
CODES = Cell("w2", ["norms", "codes"])


def row(cell: Cell, rate: float, seed: int, kl: float, kept: float = 0.1) -> dict[str, Any]:
    return {
        "base": cell.base,
        "label": cell.label,
        "rate": rate,
        "seed": seed,
        "kl": kl,
        "held_out": [0.2, kept],
    }


ROWS = [
    {"base": "w2", "seed": 0, "kl": 0.5},
    {"base": "w2", "seed": 1, "kl": 0.5},
    row(NULL, 0.01, 0, 0.4, 0.12),
    row(NULL, 0.003, 0, 0.2, 0.11),
    row(NULL, 0.01, 1, 0.4),
    row(LOSS, 0.01, 0, 0.3),
    row(LOSS, 0.01, 1, 0.36),
    row(LOSS, 0.02, 1, 0.1, 0.01),
    row(CODES, 0.003, 0, 0.5, 0.2),
]


def test_an_entry_is_compared_at_the_rates_and_seeds_of_its_null() -> None:
    loss, codes = compared(ROWS, [(LOSS, NULL), (CODES, NULL)])
    assert [round(one, 6) for one in loss.ratios] == [0.75, 0.9]
    assert (loss.section, loss.told) == ("losses", "`bd` 0.825 (0.750 to 0.900)")
    assert (codes.section, codes.told) == ("trained", "`codes` 2.500*")
    assert not compared(ROWS, [(Cell("w2", ["norms"], {"loss": "js"}), NULL)])


def test_each_null_has_a_line_and_every_entry_is_in_the_verdict() -> None:
    found = compared(ROWS, [(LOSS, NULL), (CODES, NULL)])
    lines = table(found, ROWS).splitlines()
    assert lines[2] == "| w2, 0.5000 | norms, 0.2000 at 0.003 | losses: `bd` 0.825 (0.750 to 0.900) |"
    assert lines[3].startswith("|  |  | trained: `codes`")
    won, once, never = verdict(found).splitlines()
    assert "`bd` (w2)" in won
    assert "None" in once
    assert "`codes` (w2)" in never
