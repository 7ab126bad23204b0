"""Threads: what is run, what is counted of it, and what is made of the times."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from benchmarks.speed.threads import NAMES, Run, command_of, parse, row, states, summary, thread_counts, timed


def test_counts_are_one_two_and_all() -> None:
    assert thread_counts(1) == [1]
    assert thread_counts(2) == [1, 2]
    assert thread_counts(16) == [1, 2, 16]


@pytest.mark.parametrize("name", NAMES)
def test_commands_name_what_is_asked_for(name: str, tmp_path: Path) -> None:
    command = command_of(name, tmp_path, parse(["--samples", "3"]))
    assert command[command.index("-o") + 1] == str(tmp_path)
    assert ("--samples" in command) == (name != "w4-rtn")
    grouped = command_of(name, tmp_path, parse(["--model", "m"]))
    assert ("quantize.group_size=64" in grouped) == (name != "sparse50-awp")


def test_threads_are_those_of_the_process() -> None:
    assert "R" in states(os.getpid())
    assert states(2**30) == []
    code = "import threading; [threading.Thread(target=threading.Event().wait, args=(1,)).start() for _ in range(3)]"
    assert timed([sys.executable, "-c", code], 1).threads == 4


def test_a_run_that_fails_ends_all() -> None:
    with pytest.raises(SystemExit, match="ended with 3"):
        timed([sys.executable, "-c", "raise SystemExit(3)"], 1)


def test_a_summary_counts_running_threads_and_a_row_gains() -> None:
    found = summary(2.0, 3.0, [["R", "S"]] * 199 + [["R", "R", "S"]])
    assert found == Run(2.0, 3.0, 1, 3)
    runs = {
        count: [Run(wall, 1.0, count, 9) for wall in walls]
        for count, walls in {1: (9.0, 8.0, 7.0), 2: (4.0,)}.items()
    }
    assert row("x", runs) == ["x", 8.0, 4.0, 2.0, 2]
