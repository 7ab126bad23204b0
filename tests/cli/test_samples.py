from __future__ import annotations

import dataclasses
import io

import pytest
from compress_cli.samples import show_samples
from rich.console import Console

from compress.evaluation import CheckpointFigures, Evaluation

PROMPTS = ("def first():\n", "def second():\n")


def evaluation(*texts: tuple[str, str]) -> Evaluation:
    rows = [
        CheckpointFigures(name, f"/{name}", 1.0, continuations=both)
        for name, both in zip(("dense", "w4", "w3"), texts, strict=True)
    ]
    return Evaluation(rows[0], tuple(rows[1:]), "text.txt", 8, 1, "fp32", "cpu", 1, prompts=PROMPTS)


def shown(found: Evaluation, width: int) -> list[str]:
    stream = io.StringIO()
    show_samples(found, Console(file=stream, width=width))
    return stream.getvalue().splitlines()


SHORT = evaluation(("return 1\n", "pass"), ("return 2\n", "pass"), ("retur\x1b[2J", "pass"))


def test_continuations_stand_side_by_side_with_the_place_where_they_part() -> None:
    lines = shown(SHORT, 120)
    assert lines[0] == "Prompt 1: def first():↵"
    assert lines[2].split() == ["dense", "w4", "w3"]
    assert lines[4].split("  ")[0].strip() == "return 1↵"
    assert "return ‖2↵" in lines[4]
    assert "retur‖ [2J" in lines[4]  # the escape is no character of the terminal
    assert any(line.startswith("Prompt 2: def second") for line in lines)
    assert "leaves the dense model" in lines[-1]


@pytest.mark.parametrize("width", [40, 60, 120])
def test_nothing_is_wider_than_the_terminal_nor_longer_than_some_lines(width: int) -> None:
    long = ("word " * 200, "x\n" * 200)
    other = ("word " * 150 + "other " * 50, "y" * 400)
    lines = shown(evaluation(long, other, long), width)
    assert max(map(len, lines)) <= width
    assert len(lines) < 60
    assert "‖other other" in " ".join(lines)  # the place where a long text parts is in what is left of it


def test_in_a_narrow_terminal_they_stand_under_each_other() -> None:
    lines = shown(SHORT, 60)
    assert [line.split()[0] for line in lines[4:7]] == ["dense", "w4", "w3"]


def test_where_none_was_asked_for_nothing_is_printed() -> None:
    assert shown(dataclasses.replace(SHORT, prompts=()), 80) == []
