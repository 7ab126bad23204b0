"""Charts as inline SVG and HTML, coloured by the page's style sheet.

Places are percentages and sizes are pixels, so that a chart stretches with the page while its text keeps its size.
Every text passes through `Markup.format`, which escapes it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from compress.report.scales import Scale

SHADES = 8
"""Steps of the heat map's colours, classes q0 (least) to q7 (most)."""


@dataclass(frozen=True)
class Point:
    """A labelled point; `strong` is drawn as the subject of the report."""

    x: float
    y: float
    label: str
    detail: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Axis:
    """A scale, what it shows, and how its ticks are printed."""

    scale: Scale
    title: str
    text: Callable[[float], str]


def join(parts: Sequence[Markup | str]) -> Markup:
    """The parts one after the other."""
    return Markup("").join(parts)


_PLOT = 300
"""Height of a scatter's plot area in pixels."""
_NARROW = 300.0
"""Width of the plot on a phone, where labels are fitted; on wider screens the same places have more room."""


def scatter(points: Sequence[Point], x: Axis, y: Axis, *, line: tuple[float, str] | None = None) -> Markup:
    """A scatter with a label at every point; `line` is an upright reference line and its label.

    The points that no other beats in both directions (left and down is better) are joined.
    """
    places = [(x.scale.place(p.x), _PLOT * (1 - y.scale.place(p.y) / 100)) for p in points]
    parts = [*_ticks(x, y), *(() if line is None else _upright(x, *line)), *_joined(points, places)]
    parts += _labelled(points, places)
    described = "; ".join(f"{point.label}: {point.detail}" for point in points)
    return Markup(
        '<figure class="scatter"><figcaption>{}</figcaption>'
        '<svg role="img" aria-label="{}" width="100%" height="{}">{}</svg>'
        '<div class="axis-x">{}</div></figure>'
    ).format(y.title, described, _PLOT + 26, join(parts), x.title)


def _ticks(x: Axis, y: Axis) -> Iterator[Markup]:
    """The lines of the grid and the figures of both axes."""
    for tick in y.scale.ticks():
        at = _PLOT * (1 - y.scale.place(tick) / 100)
        yield Markup('<line class="grid" x1="0" x2="100%" y1="{0:.1f}" y2="{0:.1f}"/>').format(at) + Markup(
            '<text class="tick" x="-8" y="{:.1f}" text-anchor="end">{}</text>'
        ).format(at + 4, y.text(tick))
    for tick in x.scale.ticks(5):
        yield Markup('<text class="tick" x="{:.2f}%" y="{}" text-anchor="middle">{}</text>').format(
            x.scale.place(tick), _PLOT + 20, x.text(tick)
        )


def _upright(x: Axis, value: float, label: str) -> Iterator[Markup]:
    """A reference line and its label."""
    at = x.scale.place(value)
    yield Markup('<line class="mark" x1="{0:.2f}%" x2="{0:.2f}%" y1="0" y2="{1}"/>').format(at, _PLOT)
    yield Markup('<text class="halo tick" x="{:.2f}%" dx="-6" y="10" text-anchor="end">{}</text>').format(
        at, label
    )


def _joined(points: Sequence[Point], places: Sequence[tuple[float, float]]) -> Iterator[Markup]:
    """Lines between the points that no other beats in both directions."""
    for a, b in itertools.pairwise(_front(points)):
        yield Markup('<line class="front" x1="{:.2f}%" y1="{:.1f}" x2="{:.2f}%" y2="{:.1f}"/>').format(
            *places[a], *places[b]
        )


def _labelled(points: Sequence[Point], places: Sequence[tuple[float, float]]) -> Iterator[Markup]:
    """The points and their labels."""
    for point, (px, py), (dx, dy, anchor) in zip(points, places, _label_places(points, places), strict=True):
        kind = "dot strong" if point.strong else "dot"
        yield Markup('<circle class="{}" cx="{:.2f}%" cy="{:.1f}" r="5.5"><title>{}</title></circle>').format(
            kind, px, py, f"{point.label}: {point.detail}"
        ) + Markup(
            '<text class="halo label{}" x="{:.2f}%" dx="{}" y="{:.1f}" text-anchor="{}">{}</text>'
        ).format(" strong" if point.strong else "", px, dx, py + dy, anchor, point.label)


def _front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other beats in both directions, by falling y."""
    best = float("inf")
    front = []
    for index in sorted(range(len(points)), key=lambda i: (points[i].x, points[i].y)):
        if points[index].y < best:
            best = points[index].y
            front.append(index)
    return front


def _label_places(
    points: Sequence[Point], places: Sequence[tuple[float, float]]
) -> list[tuple[int, int, str]]:
    """For each point `(dx, dy, anchor)` of its label: the first place that hits no other point or label."""
    dots = [(px * _NARROW / 100 - 7, py - 7, px * _NARROW / 100 + 7, py + 7) for px, py in places]
    taken = list(dots)
    chosen = []
    for index, (point, (px, py)) in enumerate(zip(points, places, strict=True)):
        width, left = 7.2 * len(point.label), px * _NARROW / 100
        options = []
        for dx, dy, anchor in ((11, 4, "start"), (-11, 4, "end"), (0, -12, "middle"), (0, 22, "middle"),
                               (9, -9, "start"), (9, 18, "start"), (-9, -9, "end"), (-9, 18, "end")):  # fmt: skip
            start = left + dx - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
            box = (start, py + dy - 11, start + width, py + dy + 3)
            outside = max(0.0, -box[0] - 30) + max(0.0, box[2] - _NARROW - 10) + max(0.0, box[3] - _PLOT)
            others = [other for at, other in enumerate(taken) if at != index]
            options.append((outside + sum(_overlap(box, other) for other in others), box, (dx, dy, anchor)))
        _, box, place = min(options, key=lambda option: option[0])
        taken.append(box)
        chosen.append(place)
    return chosen


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Area that two boxes share, in square pixels."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def range_track(scale: Scale, value: float, other: float | None, title: str) -> Markup:
    """One row of a dot plot: a filled dot for `value`, a hollow one for `other`, a line between them."""
    at = scale.place(value)
    parts = [Markup('<line class="grid" x1="0" x2="100%" y1="11" y2="11"/>')]
    if other is not None:
        there = scale.place(other)
        parts.append(
            Markup('<line class="span" x1="{:.2f}%" x2="{:.2f}%" y1="11" y2="11"/>').format(at, there)
        )
        parts.append(Markup('<circle class="dot hollow" cx="{:.2f}%" cy="11" r="4.5"/>').format(there))
    parts.append(Markup('<circle class="dot" cx="{:.2f}%" cy="11" r="5"/>').format(at))
    return Markup(
        '<svg class="track" width="100%" height="22" role="img" aria-label="{0}"><title>{0}</title>{1}</svg>'
    ).format(title, join(parts))


def track_axis(scale: Scale, text: Callable[[float], str]) -> Markup:
    """The ticks below rows of `range_track`."""
    return Markup('<svg class="track" width="100%" height="18">{}</svg>').format(
        join(
            [
                Markup('<text class="{}" x="{:.2f}%" y="13" text-anchor="middle">{}</text>').format(
                    "tick minor" if index % 2 else "tick", scale.place(tick), text(tick)
                )
                for index, tick in enumerate(scale.ticks(4))
            ]
        )
    )


def columns(values: Sequence[float | None], titles: Sequence[str], *, kind: str = "") -> Markup:
    """Upright bars from zero, one per block, as wide as the page lets them."""
    highest = max((value for value in values if value), default=1.0)
    step = 100 / max(len(values), 1)
    gap = 0.18 * step
    parts = []
    for index, (value, title) in enumerate(zip(values, titles, strict=True)):
        height = 0.0 if value is None else 100 * value / highest
        parts.append(
            Markup(
                '<rect class="bar {}" x="{:.3f}%" y="{:.2f}%" width="{:.3f}%" height="{:.2f}%"><title>{}</title></rect>'
            ).format(kind, index * step + gap / 2, 100 - height, step - gap, height, title)
        )
    return Markup('<svg class="columns" width="100%" height="72" role="img" aria-label="{}">{}</svg>').format(
        "; ".join(titles), join(parts)
    )


def lane(bars: Sequence[tuple[float, float, str]], *, second: bool = False) -> Markup:
    """Bars on a line, each from a part of its length to another and with a title; neighbours differ in their shade."""
    kind = "bar second" if second else "bar"
    parts = [
        Markup(
            '<rect class="{}{}" x="{:.3f}%" y="0" width="{:.3f}%" height="14"><title>{}</title></rect>'
        ).format(kind, " faint" if index % 2 else "", 100 * start, max(100 * (end - start), 0.2), title)
        for index, (start, end, title) in enumerate(bars)
    ]
    return Markup('<svg width="100%" height="14" role="img" aria-label="{}">{}</svg>').format(
        "; ".join(title for _, _, title in bars), join(parts)
    )


def heat_map(
    rows: Sequence[str],
    count: int,
    cell: Callable[[int, int], float | None],
    title: Callable[[int, int], str],
    scale: Scale,
) -> Markup:
    """A table of coloured cells: `rows` by `count` blocks; `cell(row, column)` is a positive value or None."""
    body = []
    for row, name in enumerate(rows):
        cells = []
        for column in range(count):
            value = cell(row, column)
            if value is None:
                cells.append(Markup('<td class="none"></td>'))
            else:
                cells.append(
                    Markup('<td class="q{}" title="{}"></td>').format(shade(scale, value), title(row, column))
                )
        body.append(Markup('<tr><th scope="row">{}</th>{}</tr>').format(name, join(cells)))
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if count / step <= 16)
    ticks = [
        Markup('<td colspan="{}">{}</td>').format(min(every, count - column), column)
        for column in range(0, count, every)
    ]
    return Markup(
        '<div class="scroll" tabindex="0"><table class="heat{}"><tbody>{}</tbody>'
        '<tfoot><tr><th scope="row">block</th>{}</tr></tfoot></table></div>'
    ).format(" wide" if count > 24 else "", join(body), join(ticks))


def shade(scale: Scale, value: float) -> int:
    """The step of the heat map's colours for a value."""
    return min(int(scale.place(value) / 100 * SHADES), SHADES - 1)
