"""An evaluation on the page: quality against bytes, and every figure in a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from compress.evaluation.figures import CheckpointFigures, Evaluation
from compress.report import charts
from compress.report.further import Sample, further_tables, samples, seed_sentences
from compress.report.scales import Scale, log_scale
from compress.report.tables import Table, evaluation_table
from compress.system import units as words


@dataclass(frozen=True)
class QualityView:
    """One evaluation: its scatter and its table."""

    context: str
    table: Table
    highlighted: CheckpointFigures | None
    chart: Markup | None
    names: list[str]
    tasks: list[tuple[str, list[str]]]
    notes: list[str]
    further: list[Table]
    seeds: list[str]
    samples: list[Sample]


def quality_view(evaluation: Evaluation, folder: str) -> QualityView:
    """Quality against bytes; `folder` is the name of the report's own checkpoint."""
    highlighted = next((row for row in evaluation.candidates if _last(row.path) == folder), None)
    points = [(row.name, row, row is highlighted) for row in evaluation.candidates]
    notes = [*evaluation.notes, *(f"{row.name}: {note}" for row in evaluation.rows for note in row.notes)]
    return QualityView(
        context=evaluation.context,
        table=evaluation_table(evaluation.rows, highlighted),
        highlighted=highlighted,
        chart=scatter_of(points, evaluation.reference.bytes_on_disk),
        names=[row.name for row in evaluation.rows],
        tasks=task_rows(evaluation),
        notes=notes,
        further=further_tables(evaluation, highlighted),
        seeds=seed_sentences(evaluation),
        samples=samples(evaluation),
    )


def scatter_of(rows: Sequence[tuple[str, CheckpointFigures, bool]], dense: int | None) -> Markup | None:
    """KL over bytes of checkpoints that have both; None where none has.

    Args:
        rows: label, figures, and whether it is drawn as the subject.
        dense: bytes of the dense model.
    """
    shown = [
        one for one in rows
        if one[1].bytes_on_disk and one[1].kl is not None and math.isfinite(one[1].kl) and one[1].kl > 0
    ]  # fmt: skip
    y_scale = log_scale([row.kl for _, row, _ in shown if row.kl], 1.7)
    if y_scale is None:
        return None
    most = max([*(row.bytes_on_disk or 0 for _, row, _ in shown), dense or 0])
    kl = "KL divergence from the dense model in nats per token, lower is better"
    return charts.scatter(
        [_point(*one) for one in shown],
        charts.Axis(Scale(0, most * 1.04), "bytes on disk, smaller is better", _tick_bytes),
        charts.Axis(y_scale, kl, words.plain_number),
        line=(float(dense), f"dense, {words.in_bytes(dense)}") if dense else None,
    )


def _point(label: str, row: CheckpointFigures, strong: bool) -> charts.Point:
    detail = (
        f"{words.in_bytes(row.bytes_on_disk)}, KL {words.divergence(row.kl)}, top-1 {words.percent(row.top1)}"
    )
    return charts.Point(float(row.bytes_on_disk or 0), float(row.kl or 0), label, detail, strong)


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
