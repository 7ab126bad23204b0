"""``group``: keeps the rows of a matrix at right angles, a few at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.healing.trained import Trained


@dataclass(frozen=True)
class Group:
    """``weight · mean ‖Ŵ_g Ŵ_gᵀ − I‖² / size`` over groups g of ``size`` neighbouring rows of every trained matrix,
    rows of length 1 (GOR, arXiv:2306.10001, between the filters within a group).

    Rows at the end that do not fill a group are left out.
    """

    size: int = 8
    weight: float = 1e-3

    name: ClassVar[str] = "group"

    def __post_init__(self) -> None:
        if self.size < 2:
            raise ValueError("size is at least 2")

    def __call__(self, trained: Mapping[str, Trained]) -> Tensor:
        """See :class:`~compress.healing.penalties.base.Penalty`."""
        total, count = torch.zeros(()), 0
        for one in trained.values():
            if one.master.ndim != 2 or len(one.master) < 2:
                continue
            size = min(self.size, len(one.master))
            whole = len(one.master) // size
            groups = one.master[: whole * size].view(whole, size, -1)
            total = total + overlap(groups).sum().cpu()
            count += whole
        return self.weight * total / max(1, count)


def overlap(groups: Tensor) -> Tensor:
    """``‖Ŵ Ŵᵀ − I‖² / size`` ``[groups]`` of ``[groups, size, n]``; rows of zeros count as orthogonal."""
    lengths = groups.norm(dim=-1, keepdim=True)
    unit = groups / torch.where(lengths > 0, lengths, 1.0)
    gram = unit @ unit.mT
    return (gram - torch.diag_embed(gram.diagonal(dim1=1, dim2=2))).square().sum((1, 2)) / groups.shape[1]
