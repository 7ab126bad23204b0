"""Coverage: whether a text moves in directions that the calibration text left empty."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from compress.diagnose.base import Cell, Finding
from compress.linalg.leverage import FOREIGN, leverage, second_moment

NAME = "coverage"


class Moments:
    """Second moments of the hidden states before each block, gathered while the blocks pass by."""

    def __init__(self) -> None:
        self.found: list[Tensor] = []

    def see_block(self, states: Iterable[Tensor]) -> None:
        """Take in the hidden states before the next block, by batch ``[b, length, hidden]``."""
        self.found.append(second_moment(states))


def compared(calibration: Moments, text: Moments) -> Finding:
    """The leverage of a text over the calibration text before each block."""
    return finding([leverage(one, two) for one, two in zip(calibration.found, text.found, strict=True)])


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
