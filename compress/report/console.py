"""The report of a run in the terminal."""

from __future__ import annotations

import statistics

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from compress.report import views
from compress.report.healing import sentences as healing_sentences
from compress.report.schema import Report, WeightFigures
from compress.report.timeline import BACKGROUND, Timeline, timeline
from compress.system import units as words

WIDTH = 160
"""Columns where the output is no terminal, so that nothing is cut."""
BAR = 40
_LANE = 60


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the headline, the error by kind of weight, time and memory by step, and what was not compressed."""
    console = console or _console()
    _headline(report, console)
    console.print()
    if report.weights:
        console.print(_kinds(report))
    if report.healing is not None:
        for sentence in healing_sentences(report.healing):
            console.print(Text(sentence))
    if report.steps:
        console.print(_steps(report))
    if (seen := timeline(report)) is not None:
        console.print(_lanes(seen))
    if report.skipped:
        console.print(_groups("Not compressed", "reason", views.skipped_view(report.skipped)))
    fallbacks = views.fallback_view(report)
    if fallbacks:
        console.print(_groups("Compressed otherwise than asked", "what and why", fallbacks))
    for note in report.notes:
        console.print(Text(f"note: {note}", style="dim"))


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)


def _headline(report: Report, console: Console) -> None:
    size = views.size_view(report)
    share = report.bytes.actual / max(report.bytes.source, report.bytes.actual, 1)
    console.print(Text.assemble((report.source.name, "bold"), "  ", (report.recipe_name, "bold cyan")))
    console.print(Text.assemble(("before  ", "dim"), ("█" * BAR, "bright_black"), f"  {size.before}"))
    after = "█" * max(1, round(share * BAR))
    console.print(
        Text.assemble(
            ("after   ", "dim"),
            (after.ljust(BAR), "cyan"),
            f"  {size.after}",
            ("  ", ""),
            f"{size.ratio} × smaller",
        )
    )
    facts = [f"{words.figure(report.bits_per_weight)} bits per compressed weight"]
    if report.bytes.actual == report.bytes.planned:
        facts.append("bytes as planned")
    else:
        facts.append(f"{report.bytes.planned:,} bytes planned, {report.bytes.actual:,} written")
    if report.bytes.outside:
        facts.append(f"embeddings and head {words.in_bytes(report.bytes.outside)}")
    if (text := report.calibration) is not None:
        after = ", each after BOS" if text.bos else ""
        facts.append(f"calibrated on {text.data}: {text.samples} × {text.length} tokens{after}")
    if report.seconds is not None:
        facts.append(words.in_time(report.seconds))
    if report.peak_bytes is not None:
        facts.append(f"peak memory {words.in_bytes(report.peak_bytes)}")
    console.print(Padding(Text(" · ".join(facts)), (1, 0, 0, 0)))
    console.print(Text(f"format {report.format.name}: {report.format.reason}", style="dim"))


def _table(title: str, columns: dict[str, str]) -> Table:
    """`columns`: heading → "left", "right", or "fold" for long text."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        header_style="dim",
        pad_edge=False,
    )
    for heading, how in columns.items():
        table.add_column(
            heading, justify="right" if how == "right" else "left", no_wrap=how != "fold", overflow="fold"
        )
    return table


def _kinds(report: Report) -> Table:
    """One row for each kind of weight; errors are medians."""
    short = words.short_roles([words.role(weight.name, weight.block) for weight in report.weights])
    groups: dict[tuple[str, str, str], list[WeightFigures]] = {}
    for weight in report.weights:
        key = (short[words.role(weight.name, weight.block)], weight.structure, weight.solver)
        groups.setdefault(key, []).append(weight)
    right = ("count", "bits", "before", "after", "error", "nearest")
    table = _table(
        "By kind of weight",
        {"": "fold", "structure": "fold", "solver": "left", **dict.fromkeys(right, "right")},
    )
    for (name, structure, solver), group in groups.items():
        numbers = sum(weight.shape[0] * weight.shape[1] for weight in group)
        after = sum(weight.bytes_after for weight in group)
        errors = [weight.error for weight in group if weight.error is not None]
        nearest = [weight.error_nearest for weight in group if weight.error_nearest is not None]
        table.add_row(
            Text(name),
            Text(structure),
            Text(solver),
            str(len(group)),
            words.figure(8 * after / numbers if numbers else None),
            words.in_bytes(sum(weight.bytes_before for weight in group)),
            words.in_bytes(after),
            words.error_percent(statistics.median(errors) if errors else None),
            words.error_percent(statistics.median(nearest) if nearest else None),
        )
    return table


def _steps(report: Report) -> Table:
    memory = any(step.peak_bytes is not None for step in report.steps)
    table = _table(
        "Time by step",
        {"": "left", "time": "right", **({"peak memory": "right"} if memory else {}), " ": "left"},
    )
    longest = max(step.seconds for step in report.steps) or 1.0
    for step in report.steps:
        cells: list[Text | str] = [Text(step.name), words.in_time(step.seconds)]
        if memory:
            cells.append(words.in_bytes(step.peak_bytes))
        table.add_row(*cells, Text("█" * round(24 * step.seconds / longest), style="cyan"))
    return table


def _lanes(seen: Timeline) -> Table:
    table = _table(f"Timeline of the blocks: {seen.waited} waited for the disk", {"": "left", "time": "left"})
    for lane in seen.lanes:
        colour = "green" if lane.name in BACKGROUND else "cyan"
        table.add_row(Text(lane.name), Text(lane.text(_LANE), style=colour))
    table.add_row("", Text(f"{seen.start}{seen.end:>{_LANE - len(seen.start)}}", style="dim"))
    return table


def _groups(title: str, heading: str, groups: list[views.Group]) -> Table:
    table = _table(title, {heading: "fold", "tensors": "right", "bytes": "right", "such as": "fold"})
    for group in groups:
        table.add_row(Text(group.reason), str(group.count), group.bytes, Text(group.names[0]))
    return table
