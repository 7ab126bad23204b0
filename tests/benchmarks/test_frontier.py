"""The table of quality against time: medians over seeds, and what a healed cell is held against."""

from __future__ import annotations

from typing import Any

from benchmarks.frontier.tables import frontier_table

FIGURES = {
    "kl_error": 0.01,
    "top1": 0.5,
    "perplexity": 30.0,
    "bytes": 10**6,
    "cpu_seconds": 9.0,
    "peak_bytes": 10**6,
}


def row(kl: float, **more: Any) -> dict[str, Any]:
    return {"kl": kl, **FIGURES, **more}


def column(text: str, name: str, head: str) -> str:
    lines = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    return next(line for line in lines if line[1:2] == [name])[lines[0].index(head)]


def test_rows_are_medians_over_seeds() -> None:
    text = frontier_table({"w3-gptq": {"0": row(0.1), "1": row(0.4), "2": row(0.2)}})
    assert column(text, "w3-gptq", "KL") == "0.2"
    assert column(text, "w3-gptq", "seeds") == "3"


def test_a_healed_cell_is_held_against_the_base_that_it_was_made_of() -> None:
    bases = {"0": row(0.4), "1": row(0.2), "2": row(0.3)}
    recorded = frontier_table({"w3-gptq": bases, "w3-gptq + codes": {"0": row(0.2, base_kl=0.4)}})
    assert column(recorded, "w3-gptq + codes", "÷ base") == "0.5"
    older = frontier_table({"w3-gptq": bases, "w3-gptq + codes": {"0": row(0.15)}})
    assert column(older, "w3-gptq + codes", "÷ base") == "0.5"
