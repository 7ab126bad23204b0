"""``confident``: KL from the teacher and cross entropy of the text, mixed by position by how sure the teacher is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from compress.healing.losses.base import Positions, of_following
from compress.healing.losses.kl import divergence


@dataclass(frozen=True)
class Confident:
    """``(1 − w) KL(p ‖ q) − w log q(y)`` with ``w = truth · (1 − max p)``: where the teacher is not sure, the text counts.

    FerKD (arXiv:2312.17473) gives regions of low confidence softened hard labels in the teacher's place, in steps of the
    confidence; the line is ours. At the end of a window w is 0.
    """

    truth: float = 0.5
    weight: float = 1.0

    name: ClassVar[str] = "confident"

    def __post_init__(self) -> None:
        if not 0 <= self.truth <= 1:
            raise ValueError("truth is a share from 0 to 1")

    def __call__(self, positions: Positions) -> Tensor:
        """See :class:`~compress.healing.losses.base.Loss`."""
        unsure = 1 - positions.log_p.amax(-1).exp()
        share = self.truth * unsure * (positions.following >= 0)
        kl = divergence(positions.log_p, positions.log_q)
        return (1 - share) * kl - share * of_following(positions.log_q, positions.following)
