"""``decay``: pulls every trained tensor back to where it began."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.healing.trained import Trained


@dataclass(frozen=True)
class Decay:
    """``weight/2 · mean ((θ − θ₀) / unit)²`` over all trained numbers (L2-SP, arXiv:1802.01483)."""

    weight: float = 0.1

    name: ClassVar[str] = "decay"

    def __call__(self, trained: Mapping[str, Trained]) -> Tensor:
        """See :class:`~compress.healing.penalties.base.Penalty`."""
        total, count = torch.zeros(()), 0
        for one in trained.values():
            moves = one.unit > 0  # the others are held where they are
            moved = (one.master - one.start.to(one.master.device)) * moves / torch.where(moves, one.unit, 1.0)
            total = total + moved.square().sum().cpu()
            count += int(moves.expand_as(moved).sum())
        return 0.5 * self.weight * total / max(1, count)
