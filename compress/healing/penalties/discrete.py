"""``discrete``: draws the numbers of a row to a few values of one size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from compress.healing.trained import Trained


@dataclass(frozen=True)
class Discrete:
    """The gap of the Cauchy-Schwarz inequality ``⟨u, v⟩² ≤ ‖u‖² ‖v‖²`` for powers of a row x, divided by the right side,
    mean over all rows (Taner et al., arXiv:2503.01639).

    ``values: 2``: u = 1, v = x², ``1 − (Σ x²)² / (n Σ x⁴)``, which is 0 where x is ±c; ``values: 3``: u = x, v = x³,
    ``1 − (Σ x⁴)² / (Σ x² Σ x⁶)``, which is 0 where x is ±c or 0. c is free: the penalty does not know scales.
    """

    values: Literal[2, 3] = 3
    weight: float = 1e-2

    name: ClassVar[str] = "discrete"

    def __call__(self, trained: Mapping[str, Trained]) -> Tensor:
        """See :class:`~compress.healing.penalties.base.Penalty`."""
        total, count = torch.zeros(()), 0
        for one in trained.values():
            if one.master.ndim == 2:
                total = total + discreteness_gap(one.master, self.values).sum().cpu()
                count += len(one.master)
        return self.weight * total / max(1, count)


def discreteness_gap(rows: Tensor, values: int) -> Tensor:
    """The gap ``[rows]``, from 0 to 1, of ``[rows, n]``; rows of zeros have none."""
    largest = rows.detach().abs().amax(1, keepdim=True)
    square = (rows / torch.where(largest > 0, largest, 1.0)).square()
    fourth = square.square().sum(1)
    if values == 2:
        inner, bound = square.sum(1).square(), rows.shape[1] * fourth
    else:
        inner, bound = fourth.square(), square.sum(1) * (square * square * square).sum(1)
    return torch.where(bound > 0, 1 - inner / torch.where(bound > 0, bound, 1.0), 0.0)
