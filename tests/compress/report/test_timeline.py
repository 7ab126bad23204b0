"""Lanes between the first and the last moment of the blocks, in the page, as a table and in the terminal."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from compress.report.schema import BlockFigures, Report, StepFigures
from compress.report.timeline import timeline

BLOCKS = (
    BlockFigures(
        index=0, seconds=4.0, spans={"read ahead": (2.0, 4.0), "wait": (2.0, 9.0), "solve": (4.0, 7.0)}
    ),
    BlockFigures(index=1, seconds=4.0, spans={"read ahead": (4.0, 5.0), "solve": (7.0, 12.0)}),
)


def test_lanes_between_the_first_and_the_last_moment(make_report: Callable[..., Report]) -> None:
    steps = (StepFigures(name="wait", seconds=0.25), StepFigures(name="solve", seconds=8.0))
    found = timeline(make_report(blocks=BLOCKS, steps=steps))
    assert found is not None
    assert (found.start, found.end, found.waited) == ("2.0 s", "12.0 s", "250 ms")
    bars = {lane.name: [(bar.start, bar.end, bar.title) for bar in lane.bars] for lane in found.lanes}
    assert bars == {
        "read ahead": [
            (0.0, 0.2, "block 0: 2.0 s to 4.0 s"),
            (0.2, pytest.approx(0.3), "block 1: 4.0 s to 5.0 s"),
        ],
        "solve": [(0.2, 0.5, "block 0: 4.0 s to 7.0 s"), (0.5, 1.0, "block 1: 7.0 s to 12.0 s")],
    }
    assert found.table.columns == ("read ahead", "solve")
    assert [[(cell.text, cell.value) for cell in row.cells] for row in found.table.rows] == [
        [("2.0 s to 4.0 s", 2.0), ("4.0 s to 7.0 s", 4.0)],
        [("4.0 s to 5.0 s", 4.0), ("7.0 s to 12.0 s", 7.0)],
    ]


def test_neighbours_differ_in_the_terminal_and_on_the_page(make_report: Callable[..., Report]) -> None:
    found = timeline(make_report(blocks=BLOCKS))
    assert found is not None
    read, solve = found.lanes
    assert read.text(10) == "██▒       "
    assert solve.text(10) == "  ███▒▒▒▒▒"
    assert read.chart.count('class="bar second') == 2
    assert read.chart.count("faint") == 1
    assert 'aria-label="block 0: 4.0 s to 7.0 s; block 1: 7.0 s to 12.0 s"' in solve.chart
    assert "second" not in solve.chart


def test_what_takes_no_time_is_seen(make_report: Callable[..., Report]) -> None:
    blocks = (BlockFigures(index=0, seconds=0.0, spans={"solve": (1.0, 5.0), "write behind": (5.0, 5.0)}),)
    found = timeline(make_report(blocks=blocks))
    assert found is not None
    assert found.lanes[1].text(4) == "   █"
    assert 'width="0.200%"' in found.lanes[1].chart


def test_a_report_of_an_older_run_has_none(make_report: Callable[..., Report]) -> None:
    assert timeline(make_report(blocks=(BlockFigures(index=0, seconds=1.0),))) is None
