"""The page of a sweep: divergence over bytes, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markupsafe import Markup

from compress.report import charts
from compress.report.scales import Scale, log_scale
from compress.system import units as words


@dataclass(frozen=True)
class SweepPoint:
    """One budget of a sweep.

    Attributes:
        name: its folder.
        budget: bytes that were allowed.
        nbytes: of the weight files.
        kl: divergence from the dense model on the held-out windows of the search, nats a token.
        predicted_kl: the same as the search had predicted it.
    """

    name: str
    budget: int
    nbytes: int
    kl: float
    predicted_kl: float


def render_sweep(model: str, points: Sequence[SweepPoint]) -> str:
    """The page as a string."""
    rows = charts.join(
        [
            Markup("<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>").format(
                point.name,
                words.in_bytes(point.nbytes),
                words.divergence(point.kl),
                words.divergence(point.predicted_kl),
            )
            for point in points
        ]
    )
    return str(
        Markup(
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
            "<title>{} · budgets</title>\n<style>{}</style>\n</head>\n<body><main>\n<h1>{} within budgets</h1>\n<section>{}\n"
            '<table class="plain"><thead><tr><th>budget</th><th>weight files</th><th>KL</th><th>KL predicted</th></tr></thead>'
            "<tbody>{}</tbody></table>\n"
            "<p>Divergence from the dense model in nats a token, of trial weights, on the held-out windows of the search."
            " <code>compress eval</code> measures the outputs on another text.</p></section>\n</main></body>\n</html>\n"
        ).format(model, Markup(_style()), model, _chart(points), rows)
    )


def _chart(points: Sequence[SweepPoint]) -> Markup:
    sizes = [float(point.nbytes) for point in points]
    y = log_scale([point.kl for point in points]) or Scale(1e-9, 1.0, log=True)
    x = Scale(0.9 * min(sizes), 1.1 * max(sizes))
    drawn = [
        charts.Point(point.nbytes, max(point.kl, y.low), point.name, words.divergence(point.kl))
        for point in points
    ]
    return charts.scatter(
        drawn,
        charts.Axis(x, "bytes of weight files", words.in_bytes),
        charts.Axis(y, "KL to the dense model, nats a token", words.plain_number),
    )


@cache
def _style() -> str:
    return (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
