"""``factors``: both factors of low-rank weights and of the low-rank parts of sums (adapters that stay unmerged)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from compress_kernels.layouts import Layout, Shape
from torch import nn

from compress.healing.trainables.base import SCALE_SUFFIXES, VALUE_SUFFIXES, chosen


@dataclass(frozen=True)
class Factors:
    """``W = B A``: ``B [out, rank]`` and ``A [rank, in]`` move, where they are stored as numbers; of factors on a grid the
    scales do (LoRA, arXiv:2106.09685, on a base that stays packed as in QLoRA, arXiv:2305.14314)."""

    name: ClassVar[str] = "factors"
    found_in: ClassVar[str] = "no weight is low rank or has a low-rank part"

    def suffixes(self, layout: Layout, shape: Shape) -> frozenset[str]:
        """The numbers of every factor."""
        return chosen(layout, shape, VALUE_SUFFIXES | SCALE_SUFFIXES, factors=True)

    def parameters(self, model: nn.Module, dense: Mapping[str, nn.Module]) -> frozenset[str]:
        """None."""
        return frozenset()
