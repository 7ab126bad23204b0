"""Healing on the page: the curve, and sentences with the figures as they are."""

from __future__ import annotations

from compress.report.healing import healing_view, sentences
from compress.report.schema import Healing, HealingPoint


def healing(**changes: object) -> Healing:
    points = [
        HealingPoint(step=step, tokens=100 * step, loss=None if step == 0 else 0.5, kl=kl)
        for step, kl in ((0, 1.25), (4, 0.75), (8, 0.5), (12, 0.625))
    ]
    facts = {
        "trained": {"norms": 1234, "scales": 5},
        "data": "notes<b>.txt",
        "tokens": 1200,
        "steps": 12,
        "planned_steps": 20,
        "held_out": 16,
        "length": 32,
        "start_kl": 1.25,
        "end_kl": 0.5,
        "best_step": 8,
        "ended": "the held-out KL did not fall any more after step 8",
        "points": points,
        "twice": 0.4321,
    }
    return Healing.model_validate({**facts, **changes})


def test_every_measurement_is_a_point_and_the_best_one_stands_out() -> None:
    view = healing_view(healing())
    assert view is not None
    assert view.chart.count("<circle") == 4
    assert view.chart.count('class="dot strong"') == 1
    assert "held-out KL 0.5000 after 800 tokens" in view.chart


def test_the_sentences_hold_the_figures() -> None:
    trained, kl, twice = sentences(healing())
    assert "1,234 norms, 5 scales" in trained
    assert "did not fall any more after step 8" in trained
    assert "1.2500 before, 0.5000 as written, from step 8 of 20" in kl
    assert "0.4321" in twice
    assert len(sentences(healing(twice=None))) == 2


def test_without_healing_there_is_nothing_and_a_flat_start_is_drawn() -> None:
    assert healing_view(None) is None
    flat = healing(points=[HealingPoint(step=0, tokens=0, loss=None, kl=0.0)], best_step=0)
    assert healing_view(flat) is not None
