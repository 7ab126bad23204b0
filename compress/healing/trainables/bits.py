"""``bits``: the single bits of the codes of integer grids move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from compress_kernels.layouts import Layout, PackedInteger, Shape
from torch import nn

from compress.healing.trainables.base import CODES, Rated


@dataclass(frozen=True)
class Bits(Rated):
    """A code is ``Σ 2^i [a_i > 0]``, and its latent numbers a_i are trained with gradients passed straight through the step
    (Ivan, arXiv:2202.09571; its sign bit is our zero point).

    A latent number begins ``margin`` from 0 on the side of its bit; a rate of 1 moves it by 1. ``top`` > 0 trains the so many
    highest bits of every code alone: the paper finds that three of them decide. A weight of b bits takes b times the memory of
    ``codes``.
    """

    margin: float = 0.05
    top: int = 0

    name: ClassVar[str] = "bits"
    found_in: ClassVar[str] = "no weight is on an integer grid that stands alone and is written packed"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.margin <= 0 or self.top < 0:
            raise ValueError("margin is above 0, and top 0 or more")

    @property
    def excludes(self) -> frozenset[str]:
        """Trainables of the same numbers."""
        return frozenset({"codes"})

    def suffixes(self, layout: Layout, shape: Shape) -> frozenset[str]:
        """The codes of an integer grid that stands alone."""
        return frozenset({CODES}) if isinstance(layout, PackedInteger) else frozenset()

    def numbers(self, layout: Layout, shape: Shape) -> int:
        """How many numbers are trained of a packed weight."""
        return shape[0] * shape[1] * layout.bits if isinstance(layout, PackedInteger) else 0

    def parameters(self, model: nn.Module, dense: Mapping[str, nn.Module]) -> frozenset[str]:
        """None."""
        return frozenset()
