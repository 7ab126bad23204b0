"""``orthonormal``: keeps the columns of a left factor, and the rows of a right one, at right angles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.healing.trained import Trained

FACTORS = frozenset({"factors", "nested", "lora", "sorsa"})
"""The trainables of both factors."""


@dataclass(frozen=True)
class Orthonormal:
    """``weight · mean ‖F̂ᵀ F̂ − I‖² / rank`` over the factors, F̂ with columns of length 1 (SORSA, arXiv:2409.00055).

    Trainable ``sorsa`` keeps the singular values apart, as the paper does; in other factors they are inside, and so lengths are
    left out of the penalty.
    """

    weight: float = 1e-3

    name: ClassVar[str] = "orthonormal"

    def __call__(self, trained: Mapping[str, Trained]) -> Tensor:
        """See :class:`~compress.healing.penalties.base.Penalty`."""
        total, count = torch.zeros(()), 0
        for name, one in trained.items():
            if one.kind not in FACTORS or one.master.ndim != 2:
                continue
            columns = one.master if "left" in name.rpartition(".")[2] else one.master.T
            total = total + orthogonality_error(columns).cpu()
            count += 1
        return self.weight * total / max(1, count)


def orthogonality_error(columns: Tensor) -> Tensor:
    """``‖F̂ᵀ F̂ − I‖² / rank`` of a matrix ``[n, rank]``; columns of zeros count as orthogonal."""
    lengths = columns.norm(dim=0)
    unit = columns / torch.where(lengths > 0, lengths, 1.0)
    gram = unit.T @ unit
    return (gram - torch.diag(gram.diagonal())).square().sum() / columns.shape[1]
