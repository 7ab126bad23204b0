"""``smallest``: of dense weights and kept values, those of the least magnitude alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from compress_kernels.layouts import Layout, Shape
from torch import Tensor, nn

from compress.healing.trainables.base import VALUE_SUFFIXES, Rated, chosen


@dataclass(frozen=True)
class Smallest(Rated):
    """The ``share`` of each tensor that is nearest to 0 moves, the rest stays (SaRA, arXiv:2409.06633: the
    10–20% of the weights that hardly contribute).

    SaRA also holds the change at a low rank by its nuclear norm, chooses anew half-way and keeps gradients of the chosen ones
    alone; here the choice stays and gradients and moments take the size of the tensor.
    """

    share: float = 0.2

    name: ClassVar[str] = "smallest"
    found_in: ClassVar[str] = "no weight is sparse without a grid, and none is left dense by pruning"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ValueError("share is above 0 and up to 1")

    def suffixes(self, layout: Layout, shape: Shape) -> frozenset[str]:
        """As :class:`~compress.healing.trainables.values.Values`."""
        return chosen(layout, shape, VALUE_SUFFIXES, factors=False)

    def parameters(self, model: nn.Module, dense: Mapping[str, nn.Module]) -> frozenset[str]:
        """All weights that pruning of blocks or widths left dense."""
        return frozenset(dense)

    def units(self, start: Tensor, unit: Tensor) -> Tensor:
        """0 for those that stay."""
        count = max(1, int(self.share * start.numel()))
        largest = start.abs().flatten().kthvalue(count).values
        return torch.where(start.abs() <= largest, super().units(start, unit), 0.0)
