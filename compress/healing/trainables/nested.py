"""``nested``: low-rank factors whose ranks are in order of what they bring, so that they may be cut anywhere."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from compress_kernels.layouts import LowRank

from compress.healing.trainables.factors import Factors


@dataclass(frozen=True)
class Nested(Factors):
    """Nested dropout (arXiv:1402.0915): a training step computes with the first b of the ranks of every low-rank part; b
    changes from step to step, and so the first ranks learn to do most.

    Of the steps the share ``whole`` takes all ranks; the others take a share of them that is drawn evenly from ``least`` to 1,
    the same for all weights. (The paper draws b from a geometric distribution, whose tail hardly reaches the ranks of a
    linear layer.) :func:`compress.runtime.ranks.cut_ranks` cuts a loaded model.
    """

    least: float = 0.25
    whole: float = 0.5

    name: ClassVar[str] = "nested"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.least <= 1 or not 0 <= self.whole < 1:
            raise ValueError("least is a share above 0 and up to 1, and whole one from 0 to below 1")

    def adapts(self, low: LowRank) -> bool:
        """Every low-rank part, as a step leaves ranks out."""
        return True

    def kept(self, step: int) -> float:
        """The share of the ranks that training step ``step`` computes with."""
        drawn = random.Random(step)
        if drawn.random() < self.whole:
            return 1.0
        return self.least + (1 - self.least) * drawn.random()
