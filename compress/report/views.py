"""Sections of the report page: rows of text and finished charts, from the report's figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from markupsafe import Markup

from compress.report import charts
from compress.report.scales import Scale, log_scale
from compress.report.schema import Report, Skipped, WeightFigures
from compress.system import units as words

MOST_LISTED = 500
"""Longer lists of weights stay in `compress.json`."""
WORST = 10


@dataclass(frozen=True)
class SizeView:
    """The proportional bars: widths in percent of the source."""

    before: str
    after: str
    compressed: str
    compressed_width: float
    kept: str
    kept_width: float
    ratio: str
    saved: str


def size_view(report: Report) -> SizeView:
    """The two bars of the headline."""
    source = max(report.bytes.source, report.bytes.actual, 1)
    compressed = min(sum(weight.bytes_after for weight in report.weights), report.bytes.actual)
    kept = report.bytes.actual - compressed
    return SizeView(
        before=words.in_bytes(report.bytes.source),
        after=words.in_bytes(report.bytes.actual),
        compressed=words.in_bytes(compressed),
        compressed_width=100 * compressed / source,
        kept=words.in_bytes(kept),
        kept_width=100 * kept / source,
        ratio=words.three_digits(report.ratio),
        saved=words.percent(1 - report.bytes.actual / max(report.bytes.source, 1), 0),
    )


@dataclass(frozen=True)
class ErrorRow:
    """One kind of weight: medians over its weights, and their dots on a common axis."""

    name: str
    count: int
    track: Markup
    error: str
    nearest: str


@dataclass(frozen=True)
class ErrorView:
    """Where the error is: by block and kind, by kind, and the worst weights."""

    heat: Markup | None
    shades: tuple[str, str]
    rows: list[ErrorRow]
    axis: Markup
    compares: bool
    gain: str | None
    worst: list[WeightFigures]


def error_view(report: Report) -> ErrorView | None:
    """The error section; None where no weight has an error."""
    weights = [w for w in report.weights if w.error is not None and math.isfinite(w.error)]
    if not weights:
        return None
    short = words.short_roles([words.role(w.name, w.block) for w in weights])
    groups: dict[str, list[WeightFigures]] = {}
    for weight in weights:
        groups.setdefault(short[words.role(weight.name, weight.block)], []).append(weight)
    medians = {name: _median(w.error for w in group) for name, group in groups.items()}
    nearest = {name: _median(w.error_nearest for w in group) for name, group in groups.items()}
    # Where every weight was rounded to the nearest point, a second dot would lie on the first.
    compares = any(w.error_nearest is not None and w.error_nearest != w.error for w in weights)
    scale = log_scale([*_present(medians.values()), *(_present(nearest.values()) if compares else [])], 1.6)
    scale = scale or Scale(1e-9, 1.0, log=True)
    rows = [
        ErrorRow(
            name=name,
            count=len(group),
            track=_track(scale, name, medians[name] or 0.0, nearest[name] if compares else None),
            error=words.error_percent(medians[name]),
            nearest=words.error_percent(nearest[name]) if compares else "",
        )
        for name, group in groups.items()
    ]
    heat, shades = _heat(weights, groups, report.source.blocks)
    # A weight that came out exact has no ratio that a geometric mean could take, nor have errors at the ends of the numbers.
    gains = [
        gain
        for w in weights
        if (error := w.error or 0) > 0
        and (rounded := w.error_nearest or 0) > 0
        and 0 < (gain := error / rounded) < math.inf
    ]
    return ErrorView(
        heat=heat,
        shades=shades,
        rows=rows,
        axis=charts.track_axis(scale, lambda value: f"{words.plain_number(100 * value)}%"),
        compares=compares,
        gain=words.percent(1 - math.exp(statistics.fmean(map(math.log, gains))), 0)
        if compares and gains
        else None,
        worst=sorted(weights, key=lambda w: -(w.error or 0.0))[:WORST],
    )


def _track(scale: Scale, name: str, error: float, nearest: float | None) -> Markup:
    title = f"{name}: {words.error_percent(error)}"
    if nearest is not None:
        title += f", nearest {words.error_percent(nearest)}"
    return charts.range_track(scale, error, nearest, title)


def _heat(
    weights: Sequence[WeightFigures], groups: dict[str, list[WeightFigures]], blocks: int
) -> tuple[Markup | None, tuple[str, str]]:
    """Kinds by blocks, the mean error of each cell's weights (a block's experts share one)."""
    cells: dict[tuple[str, int], list[float]] = {}
    for name, group in groups.items():
        for weight in group:
            if weight.block is not None and weight.error is not None:
                cells.setdefault((name, weight.block), []).append(weight.error)
    means = {key: statistics.fmean(values) for key, values in cells.items()}
    positive = [value for value in means.values() if value > 0]
    if not positive:
        return None, ("", "")
    scale = Scale(min(positive), max(positive), log=True)
    rows = [name for name in groups if any(key[0] == name for key in cells)]
    count = max(blocks, 1 + max(key[1] for key in cells))

    def title(row: int, column: int) -> str:
        number = len(cells[rows[row], column])
        of = f" (mean of {number})" if number > 1 else ""
        return f"block {column}, {rows[row]}: {words.error_percent(means[rows[row], column])}{of}"

    heat = charts.heat_map(rows, count, lambda row, column: means.get((rows[row], column)), title, scale)
    return heat, (words.error_percent(scale.low), words.error_percent(scale.high))


def _present(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _median(values: Iterable[float | None]) -> float | None:
    present = _present(values)
    return statistics.median(present) if present else None


@dataclass(frozen=True)
class StepRow:
    """One step: bars in percent of the longest and the highest."""

    name: str
    seconds: str
    time_width: float
    memory: str
    memory_width: float


@dataclass(frozen=True)
class CostView:
    """Time and memory, by step and by block."""

    steps: list[StepRow]
    has_memory: bool
    block_time: Markup | None
    block_memory: Markup | None
    slowest: str
    highest: str


def cost_view(report: Report) -> CostView | None:
    """The section on time and memory; None where nothing was timed."""
    if not report.steps and not report.blocks:
        return None
    longest = max((step.seconds for step in report.steps), default=0.0) or 1.0
    highest = max((step.peak_bytes or 0 for step in report.steps), default=0) or 1
    steps = [
        StepRow(
            name=step.name,
            seconds=words.in_time(step.seconds),
            time_width=100 * step.seconds / longest,
            memory=words.in_bytes(step.peak_bytes),
            memory_width=100 * (step.peak_bytes or 0) / highest,
        )
        for step in report.steps
    ]
    times = [f"block {block.index}: {words.in_time(block.seconds)}" for block in report.blocks]
    peaks = [f"block {block.index}: {words.in_bytes(block.peak_bytes)}" for block in report.blocks]
    has_peaks = any(block.peak_bytes for block in report.blocks)
    return CostView(
        steps=steps,
        has_memory=any(step.peak_bytes for step in report.steps),
        block_time=charts.columns([block.seconds for block in report.blocks], times)
        if report.blocks
        else None,
        block_memory=charts.columns([block.peak_bytes for block in report.blocks], peaks, kind="second")
        if has_peaks
        else None,
        slowest=words.in_time(max((block.seconds for block in report.blocks), default=None)),
        highest=words.in_bytes(max((block.peak_bytes or 0 for block in report.blocks), default=None)),
    )


@dataclass(frozen=True)
class Group:
    """Names that share a reason."""

    reason: str
    names: list[str]
    more: int
    count: int
    bytes: str


def skipped_view(skipped: Sequence[Skipped]) -> list[Group]:
    """What was not compressed, by reason, most bytes first."""
    reasons: dict[str, list[Skipped]] = {}
    for weight in skipped:
        reasons.setdefault(weight.reason, []).append(weight)
    ordered = sorted(reasons.items(), key=lambda item: -sum(weight.bytes for weight in item[1]))
    return [
        _group(reason, [weight.name for weight in group], sum(weight.bytes for weight in group))
        for reason, group in ordered
    ]


def fallback_view(report: Report) -> list[Group]:
    """Weights that were compressed in another way than asked, by reason."""
    reasons: dict[str, list[WeightFigures]] = {}
    for weight in report.weights:
        if weight.fallback:
            reasons.setdefault(weight.fallback, []).append(weight)
    return [
        _group(reason, [w.name for w in group], sum(w.bytes_after for w in group))
        for reason, group in reasons.items()
    ]


def _group(reason: str, names: list[str], nbytes: int) -> Group:
    return Group(
        reason, names[:MOST_LISTED], max(0, len(names) - MOST_LISTED), len(names), words.in_bytes(nbytes)
    )


def recipe_text(report: Report) -> str:
    """The recipe as YAML."""
    return yaml.safe_dump(
        _simple(report.recipe), sort_keys=False, allow_unicode=True, width=44, default_flow_style=None
    ).strip()


def sensitivity_text(report: Report) -> str | None:
    """The sensitivity as YAML; None without one."""
    if not report.sensitivity:
        return None
    return yaml.safe_dump(
        _simple(report.sensitivity), sort_keys=False, allow_unicode=True, width=44, default_flow_style=None
    ).strip()


def _simple(value: Any) -> Any:
    """Mappings and sequences as plain ones, None and empty ones left out."""
    if isinstance(value, dict):
        return {
            str(key): _simple(item)
            for key, item in value.items()
            if item is not None and item != {} and item != []
        }
    if isinstance(value, (list, tuple)):
        return [_simple(item) for item in value]
    return value
