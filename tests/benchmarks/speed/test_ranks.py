"""Efficiency of two processes: the commands that are timed, and what is made of their times."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from benchmarks.speed.ranks import NAMES, RankTimes, command_of, compare

ASKED = argparse.Namespace(model="embedded", samples=2, length=32, tokens=256)


@pytest.mark.parametrize("name", NAMES)
def test_commands_name_what_is_asked_for(name: str, tmp_path: Path) -> None:
    command = command_of(name, tmp_path / "out", tmp_path / "model", ASKED)
    assert command[0] == ("heal" if name == "heal" else "run")
    assert command[command.index("-o") + 1] == str(tmp_path / "out")
    assert ("--samples" in command) == (name != "heal")
    assert (str(tmp_path / "model") in command) == (name == "heal")
    assert "embedded" in command
    other = command_of(
        name, tmp_path / "out", tmp_path / "model", argparse.Namespace(**{**vars(ASKED), "model": "m"})
    )
    assert "m" in other
    assert ("quantize.group_size=64" in other) == (name != "heal")


def test_efficiency_is_the_speedup_by_processes() -> None:
    alone = [
        [RankTimes(10.0, 9.0, 0.0, 0.0)],
        [RankTimes(12.0, 9.0, 0.0, 0.0)],
        [RankTimes(11.0, 9.0, 0.0, 0.0)],
    ]
    together = [[RankTimes(wall, 4.0, 1.0, 0.5), RankTimes(wall, 2.0, 4.0, 0.5)] for wall in (8.0, 30.0, 6.0)]
    found = compare("x", alone, together)
    assert (found.alone, found.together) == (11.0, 8.0)
    assert found.efficiency == pytest.approx(11 / 16)
    assert found.waits == (0.125, 0.5)
    assert found.busy == (0.5, 0.25)
