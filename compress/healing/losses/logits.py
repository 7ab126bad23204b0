"""``logits``: the squared error of one token's log-probability, all that a teacher has to keep of a position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from compress.healing.losses.base import Positions, of_following


@dataclass(frozen=True)
class Logits:
    """``½ (log q(y) − log p(y))²`` for the following token y of the text; 0 at the end of a window.

    With the teacher's probability of one label alone, cross entropy is biased and a squared error of logits is not (Zhao and
    Zhu, arXiv:2310.07838; here with the normalised logits of a softmax).
    """

    weight: float = 1.0

    name: ClassVar[str] = "logits"

    def __call__(self, positions: Positions) -> Tensor:
        """See :class:`~compress.healing.losses.base.Loss`."""
        return 0.5 * of_following(positions.log_q - positions.log_p, positions.following).square()
