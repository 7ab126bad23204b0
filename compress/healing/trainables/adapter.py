"""What the adapters share: low-rank parts, and the dense weights of a pruned model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from compress_kernels.layouts import Layout, LowRank, Shape
from torch import nn

from compress.healing.trainables.base import Rated, low_rank_parts


@dataclass(frozen=True)
class OnFactors(Rated):
    """Low-rank weights and low-rank parts of sums, whose factors are made from fewer numbers and stored as before; and dense
    weights, whose change is added to them.

    ``dropout`` is the share of inputs and outputs that factors leave out in a training step.
    """

    dropout: float = 0.0

    found_in: ClassVar[str] = (
        "no weight is low rank, has a low-rank part ('lowrank' beside 'quantize' or 'prune'), or is left dense by pruning"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dropout < 1:
            raise ValueError("dropout is a share from 0 to below 1")

    def adapts(self, low: LowRank) -> bool:
        """Whether it makes this low-rank part anew."""
        return True

    def suffixes(self, layout: Layout, shape: Shape) -> frozenset[str]:
        """All tensors of all factors."""
        return frozenset(
            f"{prefix}{side}_{suffix}"
            for prefix, low, of in low_rank_parts(layout, shape)
            for side, inner, inner_shape in zip(
                ("left", "right"), (low.left, low.right), low.shapes(of), strict=True
            )
            for suffix in inner.specs(inner_shape)
        )

    def parameters(self, model: nn.Module, dense: Mapping[str, nn.Module]) -> frozenset[str]:
        """All weights that pruning of blocks or widths left dense."""
        return frozenset(dense)
