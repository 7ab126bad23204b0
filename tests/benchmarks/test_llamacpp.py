"""What the comparison with llama.cpp makes of its runners' figures."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.speed.llamacpp import bars, figures
from benchmarks.speed.runners.clocks import now, resident, since


def _found(decode: float) -> dict[str, Any]:
    resident = {"VmRSS": 200, "RssAnon": 150, "RssFile": 50}
    runs = [[decode, 2 * decode], [9.0, 9.0], [decode / 2, decode]]
    return {"first_token": [1.0, 0.5], "prefill": [[2.0, 4.0]] * 3, "decode": runs, "resident": resident}


def test_medians_and_ratios() -> None:
    rows = [
        {"name": name, "threads": 1, **figures(_found(decode), (512, 64, 3))}
        for name, decode in (("w4", 1.0), ("Q4_K_M", 2.0), ("w2", 0.5))
    ]
    assert (rows[0]["decode"], rows[0]["decode_per_processor_second"]) == (64.0, 32.0)
    assert (rows[0]["prefill"], rows[0]["resident_bytes"]) == (256.0, 200)
    found = {(bar["what"], bar["of"], bar["over"]): bar["ratio"] for bar in bars(rows, 1, "clock")}
    assert found == {
        ("decode", "w4", "Q4_K_M"): pytest.approx(2.0),
        ("prefill", "w4", "Q4_K_M"): pytest.approx(1.0),
        ("decode", "w2", "w4"): pytest.approx(2.0),
    }
    assert bars(rows, 2, "clock") == []


def test_the_clocks() -> None:
    start = now()
    held = resident()
    assert held["VmRSS"] >= held["RssAnon"] > 0
    assert all(seconds >= 0 for seconds in since(start))
