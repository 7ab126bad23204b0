"""The simulation of many GPUs: shares are the code's own, and what is alone bounds what is gained."""

from __future__ import annotations

import pytest

from benchmarks.forecasts import Form
from benchmarks.speed.simulate_ranks import GPUS, LINKS, NVLINK, PAGE, Parts, device, row, simulated

SMALL = Form("small", 256, 512, 4, 2, 5, 512, head=64)
PARTS = Parts(100.0, 640.0, 128, {1: 70.0, 8: 20.0, 64: 20.0, 512: 20.0}, 12e9, 8e9)


def test_time_is_what_is_alone_shared_solved_and_sent() -> None:
    assert PARTS.seconds(1, 50e9) == pytest.approx(100 + 640 + 70)
    assert PARTS.seconds(8, 50e9) == pytest.approx(100 + 80 + 20 + (7 * 12e9 + 7e9) / NVLINK)
    # 128 windows are one each for 128 of 512 processes.
    assert PARTS.seconds(512, 50e9) == pytest.approx(100 + 5 + 20 + (511 * 12e9 + 8e9 * 511 / 512) / 50e9)


def test_blocks_beyond_two_grow_alike() -> None:
    one, two = (Parts(1.0 + n, 2.0 * n, 128, dict.fromkeys(GPUS, 3.0 * n), 4.0 * n, 5.0 * n) for n in (1, 2))
    assert two.deeper(one, 10) == Parts(11.0, 20.0, 128, dict.fromkeys(GPUS, 30.0), 40.0, 50.0)


def test_a_row_says_where_gains_end() -> None:
    cells = row(SMALL, "w4-gptq", "InfiniBand", PARTS)
    assert cells[:4] == ["small", "`w4-gptq`", "InfiniBand", "0.225 h"]
    assert cells[-1] == "64"
    assert row(SMALL, "w4-gptq", "Ethernet", PARTS)[-1] == "8"


@pytest.mark.parametrize("recipe", ["w4-gptq", "best-w4"])
def test_a_plan_is_divided_into_parts(recipe: str) -> None:
    found = simulated(SMALL, recipe, device())
    assert min(found.alone, found.shared, found.copied, found.divided) > 0
    # Seven weights are the most that are dealt out: beyond them nothing is solved sooner.
    assert found.solving[1] > found.solving[8] == found.solving[64] > 0


def test_gradients_are_sent_besides() -> None:
    plain, best = (simulated(SMALL, recipe, device()) for recipe in ("w4-gptq", "best-w4"))
    assert best.copied > plain.copied
    assert best.divided > plain.divided


def test_the_page_has_the_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"| {link}" in text for link in LINKS)
