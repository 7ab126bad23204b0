"""The report of a continued run counts the time and memory of the runs before it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

import compress
from compress.checkpoint.journal import read_journal
from compress.system.monitor import WALL
from compress.system.progress import Silent

SMALL = {"samples": 4, "length": 32, "settings": {"quantize.group_size": 32}}


class StopsAt(Silent):
    """Interrupts the run when a block begins."""

    def __init__(self, index: int) -> None:
        self._index = index

    def block(self, index: int) -> None:
        if index == self._index:
            raise KeyboardInterrupt


def test_seconds_and_peaks_of_a_continued_run(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    source, out = tiny_model("llama", num_hidden_layers=3), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        compress.compress(source, "w4-gptq", out, progress=StopsAt(2), **SMALL)  # type: ignore[arg-type]
    entries = read_journal(tmp_path / "out.partial" / "journal.jsonl").entries
    earlier = sum(entry.seconds[WALL] for entry in entries)
    solving = sum(entry.seconds.get("seconds of solve", 0.0) for entry in entries)
    assert len(entries) == 2
    assert earlier > solving > 0
    report = compress.compress(source, "w4-gptq", out, **SMALL).report  # type: ignore[arg-type]
    steps = {step.name: step.seconds for step in report.steps}
    assert report.seconds is not None
    assert report.seconds > earlier
    assert steps["solve"] > solving
    assert report.seconds > sum(steps.values())
    # Each block has its time once: steps of the whole run are not counted as steps of the block.
    assert len(report.blocks) == 3
    assert sum(block.seconds for block in report.blocks) < report.seconds
    # A block may pass between two looks at the memory.
    assert max(block.peak_bytes or 0 for block in report.blocks) > 0


def test_a_plan_that_runs_the_model_says_so_first(
    tiny_model: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    source = tiny_model("llama", num_hidden_layers=4)
    with caplog.at_level(logging.WARNING, "compress"):
        compress.plan(source, "w4-rtn", settings={"quantize.group_size": 32})
        assert caplog.messages == []
        compress.plan(source, "prune-depth2", samples=2, length=16)
    (message,) = caplog.messages
    assert "the model is run for this plan" in message
