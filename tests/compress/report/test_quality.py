"""An evaluation on the page: which checkpoints are drawn, which is the report's own, tasks side by side."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest

from compress.evaluation import CheckpointFigures, Evaluation, TaskFigure
from compress.report.quality import quality_view, task_rows


def test_the_reports_own_checkpoint_is_known_by_its_folder(
    make_evaluation: Callable[..., Evaluation],
) -> None:
    view = quality_view(make_evaluation(), "mine")
    assert view.highlighted is not None
    assert view.highlighted.name == "mine"
    assert quality_view(make_evaluation(), "another").highlighted is None


def test_windows_paths_count_too(
    make_evaluation: Callable[..., Evaluation], make_row: Callable[..., Any]
) -> None:
    evaluation = make_evaluation()
    row = make_row("mine", 10, 0.1, path="C:\\out\\mine\\")
    changed = dataclasses.replace(evaluation, candidates=(row,))
    assert quality_view(changed, "mine").highlighted is row


def test_every_measured_checkpoint_is_drawn(make_evaluation: Callable[..., Evaluation]) -> None:
    chart = quality_view(make_evaluation(), "mine").chart
    assert chart is not None
    assert all(name in chart for name in ("w8", "mine", "w2", "dense"))


@pytest.mark.parametrize("kl", [None, 0.0, math.nan, math.inf])
def test_what_cannot_be_placed_is_left_out_of_the_chart(
    make_evaluation: Callable[..., Evaluation], make_row: Callable[..., CheckpointFigures], kl: float | None
) -> None:
    evaluation = make_evaluation()
    row = dataclasses.replace(make_row("odd-one", 5, 0.1), kl=kl)
    view = quality_view(dataclasses.replace(evaluation, candidates=(*evaluation.candidates, row)), "mine")
    assert view.chart is not None
    assert "odd-one" not in view.chart
    assert "odd-one" in [line.name for line in view.table.rows]
    alone = quality_view(dataclasses.replace(evaluation, candidates=(row,)), "mine")
    assert alone.chart is None


def test_notes_are_told_with_the_checkpoint_they_are_of(make_evaluation: Callable[..., Evaluation]) -> None:
    assert quality_view(make_evaluation(), "mine").notes == ["w2: rough"]


def test_tasks_side_by_side(make_evaluation: Callable[..., Evaluation]) -> None:
    assert task_rows(make_evaluation()) == [("tiny · acc", ["0.500 ± 0.100"] * 4)]


def test_a_task_that_one_checkpoint_lacks(
    make_evaluation: Callable[..., Evaluation], make_row: Callable[..., CheckpointFigures]
) -> None:
    row = make_row("other", 5, 0.1, tasks=(TaskFigure("big", "f1", 0.25, None, 4),))
    evaluation = dataclasses.replace(make_evaluation(), candidates=(row,))
    assert task_rows(evaluation) == [
        ("tiny · acc", ["0.500 ± 0.100", "–"]),
        ("big · f1", ["–", "0.250"]),
    ]
