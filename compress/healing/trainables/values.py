"""``values``: the kept values of sparse weights, on a mask that stays, and the dense weights of a pruned model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from compress_kernels.layouts import Layout, Shape
from torch import nn

from compress.healing.trainables.base import VALUE_SUFFIXES, Rated, chosen


@dataclass(frozen=True)
class Values(Rated):
    """The gradient of the whole weight is computed and what falls on the mask is taken (SaRA, arXiv:2409.06633, does the
    same with a mask of its own)."""

    name: ClassVar[str] = "values"
    found_in: ClassVar[str] = "no weight is sparse without a grid, and none is left dense by pruning"

    def suffixes(self, layout: Layout, shape: Shape) -> frozenset[str]:
        """The stored values of a sparse part, a few whole columns, or a dense part of a sum."""
        return chosen(layout, shape, VALUE_SUFFIXES, factors=False)

    def parameters(self, model: nn.Module, dense: Mapping[str, nn.Module]) -> frozenset[str]:
        """All weights that pruning of blocks or widths left dense."""
        return frozenset(dense)
