"""``codes``: the codes of integer grids move with their weights (quantization-aware training)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from compress_kernels.layouts import Layout, PackedInteger, Shape
from torch import nn

from compress.healing.trainables.base import CODES, Rated


@dataclass(frozen=True)
class Codes(Rated):
    """A latent fp32 weight is rounded to the grid in every forward pass; its gradient passes straight through the rounding
    (arXiv:1308.3432; scales are those that ``scales`` trains, or stay).

    It begins at the dense weight where that rounds to the stored code, else inside the code's cell, as near to the dense weight
    as .45 of a step allows: the stored codes are the start, and weights near a boundary are the first to cross it. A rate of 1
    is a step of the grid.

    ``elastic`` names further bits: the steps take turns in rounding to the stored grid and to grids of so many bits over the
    same ranges, as in the supernet of EQ-Net (arXiv:2308.07650; its elastic widths). What is stored stays the layout's own
    grid, and bears to be rounded to the others. ``guide`` is its progressive guidance (GPG): in the steps of a narrower grid
    so much of the target is what the student itself predicts on the next wider one
    (:mod:`compress.healing.guided`); the other regularizer of the paper is the penalty ``distribution``.

    Two options are those of OFQ (arXiv:2302.02210):

    - ``statsq``: a group's scale follows the mean magnitude of its latent weights (the factor in front is not the
      paper's but the one that begins at the stored scale).
    - ``freeze``: from ``calm`` of the steps on, latent weights farther than ``freeze`` of a cell from the nearest boundary of
      two codes get no gradient, so that those that swing between two codes can settle (in one stage in the place
      of a shrinking range).
    """

    statsq: bool = False
    freeze: float = 0.0
    calm: float = 0.75
    elastic: tuple[int, ...] = ()
    guide: float = 0.0

    name: ClassVar[str] = "codes"
    found_in: ClassVar[str] = "no weight is on an integer grid that stands alone and is written packed"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.freeze < 0.5 or not 0 <= self.calm <= 1:
            raise ValueError("freeze is from 0 to below 0.5, and calm a share of the steps from 0 to 1")
        if not all(1 <= bits <= 8 for bits in self.elastic):
            raise ValueError("elastic names bits from 1 to 8")
        if not 0 <= self.guide < 1 or (self.guide and not self.elastic):
            raise ValueError("guide is a share from 0 to below 1 of the steps' target under 'elastic'")

    @property
    def excludes(self) -> frozenset[str]:
        """Trainables that do not go with these options."""
        return frozenset({"scales"}) if self.statsq else frozenset()

    def suffixes(self, layout: Layout, shape: Shape) -> frozenset[str]:
        """The codes of an integer grid that stands alone."""
        return frozenset({CODES}) if isinstance(layout, PackedInteger) else frozenset()

    def parameters(self, model: nn.Module, dense: Mapping[str, nn.Module]) -> frozenset[str]:
        """None."""
        return frozenset()
