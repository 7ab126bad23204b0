"""Healing on the page: the held-out KL against tokens, and what was trained, in a sentence."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from compress.report import charts
from compress.report.scales import Scale
from compress.report.schema import Healing
from compress.system import units as words


@dataclass(frozen=True)
class HealingView:
    """A chart, and sentences below it."""

    chart: Markup
    sentences: tuple[str, ...]


def healing_view(healing: Healing | None) -> HealingView | None:
    """What the page shows of healing; None where there was none."""
    if healing is None:
        return None
    shown = healing.points
    highest = max(point.kl for point in shown)
    points = [
        charts.Point(
            x=float(point.tokens),
            y=point.kl,
            label=f"{point.kl:.3f}"
            if index in (0, len(shown) - 1) or point.step == healing.best_step
            else "",
            detail=f"held-out KL {point.kl:.4f} after {point.tokens:,} tokens",
            strong=point.step == healing.best_step,
        )
        for index, point in enumerate(shown)
    ]
    chart = charts.scatter(
        points,
        charts.Axis(Scale(0, max(1.0, 1.04 * shown[-1].tokens)), "tokens trained on", words.plain_number),
        charts.Axis(
            Scale(0, 1.1 * highest or 1.0),
            "held-out KL in nats per token, lower is better",
            words.plain_number,
        ),
    )
    return HealingView(chart, sentences(healing))


def sentences(healing: Healing) -> tuple[str, ...]:
    """What was trained, on what, how it ended, and what more tokens would bring."""
    trained = ", ".join(f"{count:,} {kind}" for kind, count in healing.trained.items())
    time = "" if healing.seconds is None else f" in {words.in_time(healing.seconds)}"
    found = [
        f"Trained: {trained}, on {healing.tokens:,} tokens of {healing.data}{time}; {healing.ended}.",
        f"Held-out KL (the text's end, {healing.held_out} × {healing.length} tokens): {healing.start_kl:.4f} before, "
        f"{healing.end_kl:.4f} as written, from step {healing.best_step} of {healing.planned_steps}.",
    ]
    if healing.twice is not None:
        found.append(
            f"Twice the tokens would bring about {healing.twice:.4f}, by a power law fitted to this curve."
        )
    return tuple(found)
