"""``codes``: the codes of integer grids move with their weights (quantization-aware training)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from compress_kernels.layouts import Layout, PackedInteger, Shape
from torch import nn

from compress.healing.trainables.base import CODES


@dataclass(frozen=True)
class Codes:
    """A latent fp32 weight is rounded to the grid in every forward pass; its gradient passes straight through the rounding and
    is 0 beyond the grid's ends (LSQ, arXiv:1902.08153, with scales that ``scales`` trains or that stay).

    It begins at the stored weight.
    """

    name: ClassVar[str] = "codes"
    found_in: ClassVar[str] = "no weight is on an integer grid that stands alone and is written packed"

    def suffixes(self, layout: Layout, shape: Shape) -> frozenset[str]:
        """The codes of an integer grid that stands alone."""
        return frozenset({CODES}) if isinstance(layout, PackedInteger) else frozenset()

    def parameters(self, model: nn.Module, dense: Mapping[str, nn.Module]) -> frozenset[str]:
        """None."""
        return frozenset()
