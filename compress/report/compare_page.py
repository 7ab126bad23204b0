"""The page that holds several finished outputs side by side."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from compress.evaluation.figures import SeedSpread
from compress.report import charts, views
from compress.report.compare import Comparison, Measured, Output, noise_floors
from compress.report.page import template
from compress.report.quality import scatter_of
from compress.report.scales import Scale
from compress.report.schema import WeightFigures
from compress.report.tables import QUALITY, Cell, Row, Table, number, quality_cells
from compress.system import units as words
from compress.system.files import write_text

_MARK = "· comparison of compressed outputs</title>"


def write_comparison(comparison: Comparison, path: str | Path) -> None:
    """Write the page.

    Raises:
        UserError: there is a link of that name, a file that is no such page, or it cannot be written.
    """
    write_text(path, render_comparison(comparison), mark=_MARK)


def render_comparison(comparison: Comparison) -> str:
    """The page as a string."""
    outputs, measured = comparison.outputs, comparison.measured
    floors = [(one.context, noise_floors(outputs, one.rows)) for one in measured]
    return template("compare.html").render(
        source=outputs[0].report.source,
        outputs=outputs,
        words=words,
        warnings=comparison.warnings,
        headline=headline(outputs, measured[0] if measured else None),
        context=measured[0].context if measured else None,
        chart=_chart(measured[0]) if measured else None,
        others=[(one.context, _quality_table(one), _chart(one)) for one in measured[1:]],
        floors=[(context, _floor_table(found)) for context, found in floors if found],
        losses=losses(outputs),
        recipes=recipes(outputs),
    )


def headline(outputs: Sequence[Output], measured: Measured | None) -> Table:
    """Quality, bytes, time and memory of every output; dashes where it was not measured with the others."""
    columns = ("bytes", "embeddings, head", "bits per weight", *QUALITY, "made in", "peak memory")
    rows = []
    if measured is not None:
        dense = measured.dense
        sizes = (number(dense.bytes_on_disk, words.in_bytes), number(dense.outside_bytes, words.in_bytes))
        cells = (*sizes, number(dense.bits_per_weight, words.figure), *quality_cells(dense))
        rows.append(Row(dense.name, (*cells, *(Cell(words.NOTHING),) * 2), "dense"))
    for output in outputs:
        report = output.report
        figures = None if measured is None else measured.rows.get(output.name)
        cells = (
            number(report.bytes.actual, words.in_bytes),
            number(report.bytes.outside, words.in_bytes),
            number(report.bits_per_weight, words.figure),
            *quality_cells(figures),
            number(report.seconds, words.in_time),
            number(report.peak_bytes, words.in_bytes),
        )
        rows.append(Row(output.name, cells))
    return Table("All outputs", "output", columns, tuple(rows))


def _quality_table(measured: Measured) -> Table:
    rows = [Row(measured.dense.name, quality_cells(measured.dense), "dense")]
    rows += [Row(name, quality_cells(figures)) for name, figures in measured.rows.items()]
    return Table(f"Measured at {measured.context}", "output", QUALITY, tuple(rows))


def _chart(measured: Measured) -> Markup | None:
    return scatter_of(
        [(name, row, False) for name, row in measured.rows.items()], measured.dense.bytes_on_disk
    )


def _floor_table(floors: Sequence[SeedSpread]) -> Table:
    rows = tuple(
        Row(
            floor.recipe,
            (
                Cell(words.listed(floor.names)),
                number(floor.kl, words.divergence),
                number(floor.deviation, words.divergence),
            ),
        )
        for floor in floors
    )
    return Table("Spread over seeds", "recipe", ("outputs", "mean KL", "standard deviation"), rows)


@dataclass(frozen=True)
class LossView:
    """The errors of the layers.

    Attributes:
        maps: output's name, its errors by block and kind, all in one scale.
        shades: the least and the largest error, in words.
        table: medians by kind of weight, an error and a distance for each output.
        alike: whether all were solved by the same scores, so that errors compare.
    """

    maps: list[tuple[str, Markup]]
    shades: tuple[str, str]
    table: Table
    alike: bool


def losses(outputs: Sequence[Output]) -> LossView | None:
    """Errors by block and kind; None where no output has any."""
    roles = [words.role(w.name, w.block) for output in outputs for w in output.report.weights]
    short = words.short_roles(roles)
    cells = [(output, _cells(output.report.weights, short)) for output in outputs]
    positive = [value for _, found in cells for value in found.values() if value > 0]
    if not positive:
        return None
    scale = Scale(min(positive), max(positive), log=True)
    maps = [
        (output.name, _map(found, scale, output.report.source.blocks)) for output, found in cells if found
    ]
    shades = (words.error_percent(scale.low), words.error_percent(scale.high))
    alike = len({_scores(output) for output in outputs}) == 1
    return LossView(maps, shades, _loss_table(outputs, short), alike)


def _cells(weights: Sequence[WeightFigures], short: dict[str, str]) -> dict[tuple[str, int], float]:
    """Kind and block → the mean error; a block's experts share a cell."""
    found: dict[tuple[str, int], list[float]] = {}
    for weight in weights:
        if weight.block is not None and weight.error is not None and math.isfinite(weight.error):
            key = (short[words.role(weight.name, weight.block)], weight.block)
            found.setdefault(key, []).append(weight.error)
    return {key: statistics.fmean(values) for key, values in found.items()}


def _map(found: dict[tuple[str, int], float], scale: Scale, blocks: int) -> Markup:
    rows = list(dict.fromkeys(role for role, _ in found))
    count = max(blocks, 1 + max(block for _, block in found))

    def title(row: int, column: int) -> str:
        return f"block {column}, {rows[row]}: {words.error_percent(found[rows[row], column])}"

    return charts.heat_map(rows, count, lambda row, column: found.get((rows[row], column)), title, scale)


def _loss_table(outputs: Sequence[Output], short: dict[str, str]) -> Table:
    columns = [f"{output.name}: {what}" for output in outputs for what in ("error", "distance")]
    kinds: dict[str, list[list[WeightFigures]]] = {}
    for index, output in enumerate(outputs):
        for weight in output.report.weights:
            groups = kinds.setdefault(short[words.role(weight.name, weight.block)], [[] for _ in outputs])
            groups[index].append(weight)
    rows = [
        Row(
            kind,
            tuple(
                cell
                for group in groups
                for cell in (_median([w.error for w in group]), _median([w.distance for w in group]))
            ),
        )
        for kind, groups in kinds.items()
    ]
    return Table("Median error and distance by kind of weight", "weight", tuple(columns), tuple(rows))


def _median(values: Sequence[float | None]) -> Cell:
    present = [value for value in values if value is not None and math.isfinite(value)]
    return number(statistics.median(present) if present else None, words.error_percent)


def _scores(output: Output) -> str:
    """The scores that a recipe names, with their options: errors are relative in the metric of these."""
    recipe = output.report.recipe
    steps = recipe.get("steps") or []
    return str([step.get("score") for step in steps if isinstance(step, dict)])


@dataclass(frozen=True)
class RecipeView:
    """A recipe as lines, each with whether all outputs have it."""

    name: str
    lines: list[tuple[str, bool]]


def recipes(outputs: Sequence[Output]) -> list[RecipeView]:
    """The recipes side by side; lines that not all have stand out."""
    texts = [views.recipe_text(output.report).splitlines() for output in outputs]
    common = set(texts[0]).intersection(*itertools.islice(texts, 1, None))
    return [
        RecipeView(output.name, [(line, line in common) for line in text])
        for output, text in zip(outputs, texts, strict=True)
    ]
