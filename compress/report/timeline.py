"""When each block was read, observed, solved and written: a lane for each, in the page and in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from compress.checkpoint.read_ahead import AHEAD
from compress.checkpoint.writer import BEHIND
from compress.report import charts
from compress.report.schema import BlockFigures, Report
from compress.report.tables import Cell, Row, Table
from compress.system import units as words
from compress.system.monitor import WAIT

BACKGROUND = frozenset({AHEAD, BEHIND})
"""What the disk does while the blocks are worked on."""
LANES = (AHEAD, "load", "transform", "observe", "solve", BEHIND)
"""What has a lane, in the order of a block; of these, what a run did."""
_MARKS = "█▒"
"""Blocks beside each other in the terminal."""


@dataclass(frozen=True)
class Bar:
    """What a lane holds of a block: a part of the lane, between 0 and 1, and in words."""

    start: float
    end: float
    title: str


@dataclass(frozen=True)
class Lane:
    """A step and its bars, in the order of the blocks."""

    name: str
    bars: tuple[Bar, ...]

    @property
    def chart(self) -> Markup:
        """The lane for the page."""
        return charts.lane(
            [(bar.start, bar.end, bar.title) for bar in self.bars], second=self.name in BACKGROUND
        )

    def text(self, width: int) -> str:
        """The lane in so many characters; a bar has one at least."""
        cells = [" "] * width
        for index, bar in enumerate(self.bars):
            first = min(int(bar.start * width), width - 1)
            for at in range(first, max(first + 1, round(bar.end * width))):
                cells[at] = _MARKS[index % 2]
        return "".join(cells)


@dataclass(frozen=True)
class Timeline:
    """The lanes between two times of the run, what was waited for the disk, and the same as a table."""

    lanes: tuple[Lane, ...]
    start: str
    end: str
    waited: str
    table: Table


def timeline(report: Report) -> Timeline | None:
    """The timeline of a run; None where none was recorded."""
    blocks = [block for block in report.blocks if any(name in block.spans for name in LANES)]
    if not blocks:
        return None
    names = [name for name in LANES if any(name in block.spans for block in blocks)]
    times = [time for block in blocks for name in names for time in block.spans.get(name, ())]
    start, end = min(times), max(times)
    lanes = tuple(Lane(name, tuple(_bars(name, blocks, start, end))) for name in names)
    waited = sum(step.seconds for step in report.steps if step.name == WAIT)
    table = Table(
        "Timeline",
        "block",
        tuple(names),
        tuple(
            Row(str(block.index), tuple(_cell(block.spans.get(name)) for name in names)) for block in blocks
        ),
    )
    return Timeline(lanes, words.in_time(start), words.in_time(end), words.in_time(waited), table)


def _bars(name: str, blocks: Sequence[BlockFigures], start: float, end: float) -> Iterator[Bar]:
    length = (end - start) or 1.0
    for block in blocks:
        if span := block.spans.get(name):
            first, last = ((time - start) / length for time in span)
            yield Bar(first, last, f"block {block.index}: {_in_words(span)}")


def _in_words(span: tuple[float, float]) -> str:
    return f"{words.in_time(span[0])} to {words.in_time(span[1])}"


def _cell(span: tuple[float, float] | None) -> Cell:
    return Cell(words.NOTHING) if span is None else Cell(_in_words(span), span[0])
