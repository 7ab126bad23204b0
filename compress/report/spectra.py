"""The section on low rank: every weight's spectrum, where it was cut, and what that costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup

from compress.report.charts import join
from compress.report.schema import Report, WeightFigures
from compress.system import units as words

_WIDTH, _HEIGHT = 100, 40
_DECADES = 4.0
"""How far down a curve is drawn, in powers of ten of the singular value."""


@dataclass(frozen=True)
class SpectraView:
    """Kinds of weight and, for each, one cell per block; None where there is no low-rank weight."""

    rows: list[tuple[str, list[Markup]]]
    blocks: int


def spectra_view(report: Report) -> SpectraView | None:
    """The section; None for a checkpoint without low-rank parts. Of a block's experts the first is shown."""
    weights = [w for w in report.weights if isinstance(w.info.get("spectrum"), str) and w.block is not None]
    if not weights:
        return None
    short = words.short_roles([words.role(w.name, w.block) for w in weights])
    cells: dict[str, dict[int, WeightFigures]] = {}
    for weight in weights:
        assert weight.block is not None
        row = cells.setdefault(short[words.role(weight.name, weight.block)], {})
        row.setdefault(weight.block, weight)
    blocks = 1 + max(weight.block or 0 for weight in weights)
    empty = Markup("<td></td>")
    return SpectraView(
        [
            (name, [_cell(row[block]) if block in row else empty for block in range(blocks)])
            for name, row in cells.items()
        ],
        blocks,
    )


def _cell(weight: WeightFigures) -> Markup:
    values = [float(word) for word in str(weight.info["spectrum"]).split()]
    rank, of = _number(weight, "rank"), max(_number(weight, "of"), 1.0)
    lost = _number(weight, "lost")
    points = " ".join(
        f"{_WIDTH * i / max(len(values) - 1, 1):.1f},{_depth(value):.1f}" for i, value in enumerate(values)
    )
    title = f"{weight.name}: rank {rank:.0f} of {of:.0f}, {words.error_percent(lost)} lost by it"
    return Markup(
        '<td><svg class="spectrum" viewBox="0 0 {0} {1}" preserveAspectRatio="none" role="img" aria-label="{2}">'
        '<title>{2}</title><polyline points="{3}"/><line x1="{4:.1f}" x2="{4:.1f}" y1="0" y2="{1}"/></svg>'
        "<span>{5:.0f}</span></td>"
    ).format(_WIDTH, _HEIGHT, title, points, _WIDTH * rank / of, rank)


def _depth(value: float) -> float:
    """From the top for the largest value to the bottom at the last decade that is drawn."""
    if value <= 0:
        return float(_HEIGHT)
    return min(-math.log10(value) / _DECADES, 1.0) * _HEIGHT


def _number(weight: WeightFigures, key: str) -> float:
    value = weight.info.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


def table(view: SpectraView) -> Markup:
    """The cells as a table, kinds downwards and blocks across."""
    rows = [
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(name, join(cells)) for name, cells in view.rows
    ]
    head = join([Markup("<td>{}</td>").format(block) for block in range(view.blocks)])
    return Markup(
        '<div class="scroll"><table class="spectra"><tbody>{}</tbody>'
        '<tfoot><tr><th scope="row">block</th>{}</tr></tfoot></table></div>'
    ).format(join(rows), head)
