"""Coverage: whether a text moves in directions that the calibration text left empty."""

from __future__ import annotations

from compress.diagnose.base import Cell, Finding
from compress.linalg.leverage import FOREIGN

NAME = "coverage"


def finding(leverages: list[float]) -> Finding:
    """The table of a leverage by block, and what it means."""
    worst = max(range(len(leverages)), key=lambda index: leverages[index])
    most = leverages[worst]
    advice = (
        f"Before block {worst} the text has {most:.1f} times the leverage of the calibration text: calibrate on text like it."
        if most >= FOREIGN
        else f"The text moves where the calibration text does (leverage at most {most:.2f}): the calibration fits it."
    )
    rows: tuple[tuple[Cell, ...], ...] = tuple(enumerate(leverages))
    return Finding(NAME, "Coverage by the calibration text", ("block", "leverage"), rows, advice)
