"""An evaluation on the page: quality against bytes, and every figure in a table."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup

from compress.evaluation.figures import CheckpointFigures, Evaluation
from compress.report import charts
from compress.report.scales import Scale, log_scale
from compress.system import units as words


@dataclass(frozen=True)
class QualityView:
    """One evaluation: its scatter and its table."""

    context: str
    rows: list[CheckpointFigures]
    highlighted: CheckpointFigures | None
    chart: Markup | None
    tasks: list[tuple[str, list[str]]]
    notes: list[str]


def quality_view(evaluation: Evaluation, folder: str) -> QualityView:
    """Quality against bytes; `folder` is the name of the report's own checkpoint."""
    highlighted = next((row for row in evaluation.candidates if _last(row.path) == folder), None)
    shown = [
        row for row in evaluation.candidates
        if row.bytes_on_disk and row.kl is not None and math.isfinite(row.kl) and row.kl > 0
    ]  # fmt: skip
    chart = None
    y_scale = log_scale([row.kl for row in shown if row.kl], 1.7)
    if y_scale is not None:
        dense = evaluation.reference.bytes_on_disk
        most = max([*(row.bytes_on_disk or 0 for row in shown), dense or 0])
        points = [_point(row, row is highlighted) for row in shown]
        chart = charts.scatter(
            points,
            charts.Axis(Scale(0, most * 1.04), "bytes on disk, smaller is better", _tick_bytes),
            charts.Axis(
                y_scale,
                "KL divergence from the dense model in nats per token, lower is better",
                words.plain_number,
            ),
            line=(float(dense), f"dense, {words.in_bytes(dense)}") if dense else None,
        )
    notes = [*evaluation.notes, *(f"{row.name}: {note}" for row in evaluation.rows for note in row.notes)]
    return QualityView(
        evaluation.context, list(evaluation.rows), highlighted, chart, task_rows(evaluation), notes
    )


def _point(row: CheckpointFigures, strong: bool) -> charts.Point:
    detail = (
        f"{words.in_bytes(row.bytes_on_disk)}, KL {words.divergence(row.kl)}, top-1 {words.percent(row.top1)}"
    )
    return charts.Point(float(row.bytes_on_disk or 0), float(row.kl or 0), row.name, detail, strong)


def _tick_bytes(value: float) -> str:
    number, _, unit = words.in_bytes(value).partition(" ")
    return f"{float(number):g} {unit}" if value else "0"


def _last(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def task_rows(evaluation: Evaluation) -> list[tuple[str, list[str]]]:
    """Task and metric → one figure per checkpoint, with its standard error."""
    keys = list(dict.fromkeys((task.task, task.metric) for row in evaluation.rows for task in row.tasks))
    table = []
    for key in keys:
        cells = []
        for row in evaluation.rows:
            task = next((task for task in row.tasks if (task.task, task.metric) == key), None)
            text = words.NOTHING if task is None else words.figure(task.value, 3)
            cells.append(
                text if task is None or task.stderr is None else f"{text} ± {words.figure(task.stderr, 3)}"
            )
        table.append((f"{key[0]} · {key[1]}", cells))
    return table
