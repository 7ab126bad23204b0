"""``lora``: both factors of a low-rank change."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import ClassVar

import torch
from compress_kernels.layouts import Layout, Shape
from torch import Tensor

from compress.healing.adapted import Made, trained, units_of_factors
from compress.healing.trainables.adapter import OnFactors
from compress.healing.trainables.base import low_rank_parts


@dataclass(frozen=True)
class LoRA(OnFactors):
    """``W + B A`` (LoRA, arXiv:2106.09685): of a dense weight B ``[out, rank]`` begins at 0 and A ``[rank, in]`` at random
    numbers of variance 1 / in, and the product is added to what is stored; of a low-rank part both factors move, as by
    ``factors``.
    """

    rank: int = 16

    name: ClassVar[str] = "lora"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise ValueError("rank is at least 1")

    def numbers(self, layout: Layout, shape: Shape) -> int:
        """How many numbers are trained of a packed weight."""
        return sum(low.rank * sum(of) for _, low, of in low_rank_parts(layout, shape))

    def part(self, name: str, left: Tensor, right: Tensor, rest: Tensor) -> Made:
        """See :class:`~compress.healing.adapted.Adapter`: both factors, as they are."""
        return self._made(name, left, right, rest)

    def change(self, name: str, weight: Tensor) -> Made:
        """See :class:`~compress.healing.adapted.Adapter`."""
        rank, inputs = min(self.rank, *weight.shape), weight.shape[1]
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        right = torch.randn(rank, inputs, generator=generator).to(weight) / inputs**0.5
        made = self._made(name, weight.new_zeros(weight.shape[0], rank), right, weight)
        return Made(made.masters, lambda: torch.matmul(*made.make()))

    def _made(self, name: str, left: Tensor, right: Tensor, beside: Tensor) -> Made:
        units = units_of_factors(left, right, beside)
        masters = {
            side: trained(f"{name}.{side}", self.name, one, self.units(one, unit))
            for side, one, unit in zip(("left", "right"), (left, right), units, strict=True)
        }
        return Made(masters, lambda: (masters["left"].master, masters["right"].master))
