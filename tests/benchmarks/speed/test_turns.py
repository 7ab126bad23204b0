"""What is made of turns."""

from __future__ import annotations

import pytest

from benchmarks.speed.turns import ratios


def test_ratios_are_of_neighbouring_turns_and_of_the_least() -> None:
    turns = {
        "w4": [(9.0, 2.0), (9.0, 4.0), (9.0, 5.0)],
        "Q4_K_M": [(1.0, 3.0), (1.0, 4.0), (1.0, 10.0)],
        "w8": [(1.0, 1.0)] * 3,
    }
    found = {(bar["of"], bar["over"]): bar for bar in ratios(turns)}
    assert set(found) == {("w4", "Q4_K_M")}
    bar = found["w4", "Q4_K_M"]
    assert bar["of_pairs"] == pytest.approx(1.5)
    assert bar["of_least"] == pytest.approx(1.5)
    turns["Q4_K_M"][0] = (1.0, 1.0)
    assert ratios(turns)[0]["of_least"] == pytest.approx(0.5)
