"""``f``: further f-divergences by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from compress.healing.losses.base import Positions
from compress.healing.losses.kl import divergence


def _total_variation(at: Positions) -> Tensor:
    return 0.5 * (at.log_p.exp() - at.log_q.exp()).abs().sum(-1)


def _hellinger(at: Positions) -> Tensor:
    return 0.5 * ((0.5 * at.log_p).exp() - (0.5 * at.log_q).exp()).square().sum(-1)


def _jeffreys(at: Positions) -> Tensor:
    return divergence(at.log_p, at.log_q) + divergence(at.log_q, at.log_p)


KINDS: dict[str, Callable[[Positions], Tensor]] = {
    "total-variation": _total_variation,
    "hellinger": _hellinger,
    "jeffreys": _jeffreys,
}


@dataclass(frozen=True)
class FDivergence:
    """``Σ q f(p / q)``: total variation ``½ Σ |p − q|``, squared Hellinger ``½ Σ (√p − √q)²``, Jeffreys
    ``KL(p ‖ q) + KL(q ‖ p)`` (the family of f-distill, arXiv:2307.15190)."""

    kind: Literal["total-variation", "hellinger", "jeffreys"] = "total-variation"
    weight: float = 1.0

    name: ClassVar[str] = "f"

    def __call__(self, positions: Positions) -> Tensor:
        """See :class:`~compress.healing.losses.base.Loss`."""
        return KINDS[self.kind](positions)
