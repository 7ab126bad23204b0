"""``mixed``: KL from the teacher and cross entropy of the text, mixed by position by how well the teacher knows the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from compress.healing.losses.base import Positions, of_following
from compress.healing.losses.kl import divergence


@dataclass(frozen=True)
class Mixed:
    """``(1 − w) KL(p ‖ q) − w log q(y)`` with ``w = truth · (1 − p(y))``: the text counts where the teacher does not expect it.

    The weight of the truth in closed form is known for kernel regression alone (arXiv:2102.13088); this rule is ours. At the
    end of a window w is 0.
    """

    truth: float = 0.5
    weight: float = 1.0

    name: ClassVar[str] = "mixed"

    def __post_init__(self) -> None:
        if not 0 <= self.truth <= 1:
            raise ValueError("truth is a share from 0 to 1")

    def __call__(self, positions: Positions) -> Tensor:
        """See :class:`~compress.healing.losses.base.Loss`."""
        known = of_following(positions.log_p, positions.following).exp()
        share = self.truth * (1 - known) * (positions.following >= 0)
        kl = divergence(positions.log_p, positions.log_q)
        return (1 - share) * kl - share * of_following(positions.log_q, positions.following)
