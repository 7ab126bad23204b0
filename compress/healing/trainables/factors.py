"""``factors``: both factors of low-rank weights and of the low-rank parts of sums (adapters that stay unmerged)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from compress_kernels.layouts import Dense, Layout, LowRank, Shape
from torch import Tensor, nn

from compress.healing.adapted import Made, trained, units_of_factors
from compress.healing.trainables.base import SCALE_SUFFIXES, VALUE_SUFFIXES, Rated, chosen, low_rank_parts


@dataclass(frozen=True)
class Factors(Rated):
    """``W = B A``: ``B [out, rank]`` and ``A [rank, in]`` move, where they are stored as numbers; factors on a grid
    are rounded in every forward pass, with scales that follow their largest magnitudes (LoRA, arXiv:2106.09685, on a base that
    stays packed as in QLoRA, arXiv:2305.14314).

    ``dropout`` is the share of inputs and outputs that a training step leaves out (LoRA dropout, arXiv:2404.09610,
    without its ensemble at test time).
    """

    dropout: float = 0.0

    name: ClassVar[str] = "factors"
    found_in: ClassVar[str] = "no weight is low rank or has a low-rank part"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dropout < 1:
            raise ValueError("dropout is a share from 0 to below 1")

    def adapts(self, low: LowRank) -> bool:
        """Whether a low-rank part needs more than its stored numbers as they are."""
        return self.dropout > 0 or not all(isinstance(one, Dense) for one in (low.left, low.right))

    def part(self, name: str, left: Tensor, right: Tensor, rest: Tensor) -> Made:
        """See :class:`~compress.healing.adapted.Adapter`: both factors, as they are."""
        units = dict(zip(("left", "right"), units_of_factors(left, right, rest), strict=True))
        made = {
            side: trained(f"{name}{side}", self.name, one, self.units(one, units[side]))
            for side, one in (("left", left), ("right", right))
        }
        return Made(made, lambda: (made["left"].master, made["right"].master))

    def numbers(self, layout: Layout, shape: Shape) -> int:
        """How many numbers are trained."""
        return sum(low.rank * sum(of) for _, low, of in low_rank_parts(layout, shape))

    def suffixes(self, layout: Layout, shape: Shape) -> frozenset[str]:
        """The numbers of every factor."""
        return chosen(layout, shape, VALUE_SUFFIXES | SCALE_SUFFIXES, factors=True)

    def parameters(self, model: nn.Module, dense: Mapping[str, nn.Module]) -> frozenset[str]:
        """None."""
        return frozenset()
