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

    It begins at the stored weight. Two options are those of OFQ (arXiv:2302.02210):

    - ``statsq``: a group's scale follows the mean magnitude of its latent weights (eq. 5; the factor in front is not the
      paper's but the one that begins at the stored scale).
    - ``freeze``: from ``calm`` of the steps on, latent weights farther than ``freeze`` of a cell from the nearest boundary of
      two codes get no gradient, so that those that swing between two codes can settle (section 4.2, in one stage in the place
      of a shrinking range).
    """

    statsq: bool = False
    freeze: float = 0.0
    calm: float = 0.75

    name: ClassVar[str] = "codes"
    found_in: ClassVar[str] = "no weight is on an integer grid that stands alone and is written packed"

    def __post_init__(self) -> None:
        if not 0 <= self.freeze < 0.5 or not 0 <= self.calm <= 1:
            raise ValueError("freeze is from 0 to below 0.5, and calm a share of the steps from 0 to 1")

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
