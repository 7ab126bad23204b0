"""``scales``: the scales of quantization grids and their zero points; the codes stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from compress_kernels.layouts import Layout, Shape
from torch import nn

from compress.healing.trainables.base import SCALE_SUFFIXES, ZERO_POINT, Rated, chosen, has_zero_points


@dataclass(frozen=True)
class Scales(Rated):
    """Scales of integer grids, NF4, MLX and small floats, also under a mask and in the parts of a sum.

    Whole zero points are trained as real numbers and rounded in the forward pass, with the gradient passed straight through
    (LSQ+, arXiv:2004.09576); ``zero_points: false`` leaves them.
    """

    zero_points: bool = True

    name: ClassVar[str] = "scales"
    found_in: ClassVar[str] = (
        "no weight is on an integer, NF4, MLX or wide-scaled grid that is written packed"
    )

    def suffixes(self, layout: Layout, shape: Shape) -> frozenset[str]:
        """The scales, and the zero points of an integer grid that stands alone."""
        zeros = {ZERO_POINT} if self.zero_points and has_zero_points(layout) else set()
        return chosen(layout, shape, SCALE_SUFFIXES) | zeros

    def parameters(self, model: nn.Module, dense: Mapping[str, nn.Module]) -> frozenset[str]:
        """None."""
        return frozenset()
