"""``bang``: weights averaged as by ``wise``, after a training that does not grow over-confident."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compress.healing.ends.wise import WiSE


@dataclass(frozen=True)
class Bang(WiSE):
    """WiSE-FT on top of label smoothing (BANG, arXiv:2309.17230): of two averaged models, the fine-tuned one is
    over-confident and drowns the other; trained on smoothed targets it does not.

    The teacher's probabilities are ``(1 − smoothing) p + smoothing / vocabulary`` in training, and as they are where the
    held-out KL is measured.
    """

    smoothing: float = 0.05

    name: ClassVar[str] = "bang"

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ValueError("smoothing is a share from 0 to below 1")
