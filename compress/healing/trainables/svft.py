"""``svft``: coefficients between the singular vectors of a weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from compress_kernels.layouts import Layout, Shape
from torch import Tensor

from compress.healing.adapted import Made, trained
from compress.healing.trainables.adapter import OnFactors
from compress.healing.trainables.base import low_rank_parts
from compress.linalg.leading_triples import leading


@dataclass(frozen=True)
class SVFT(OnFactors):
    """``W + U M Vᵀ``, U and V the singular vectors of W, which stay; M moves on its diagonal and ``band`` diagonals on
    either side (SVFT, arXiv:2405.19597; plain and banded).

    Of a low-rank part U and V are the part's own, with M beginning at its singular values, or, where the part is 0, the
    leading ones of what is beside it; of a dense weight they are the first ``rank`` (0: all), with M beginning at 0.
    """

    band: int = 0
    rank: int = 0

    name: ClassVar[str] = "svft"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.band < 0 or self.rank < 0:
            raise ValueError("band and rank are 0 or more")

    def numbers(self, layout: Layout, shape: Shape) -> int:
        """How many numbers are trained of a packed weight, about."""
        return sum(low.rank * (1 + 2 * self.band) for _, low, of in low_rank_parts(layout, shape))

    def part(self, name: str, left: Tensor, right: Tensor, rest: Tensor) -> Made:
        """See :class:`~compress.healing.adapted.Adapter`."""
        rank, product = left.shape[1], left @ right
        own = bool(product.any())
        u, values, v = leading(product if own else rest, rank)
        return self._made(
            name, u, values, v, torch.diag(values) if own else torch.zeros_like(torch.diag(values))
        )

    def change(self, name: str, weight: Tensor) -> Made:
        """See :class:`~compress.healing.adapted.Adapter`."""
        u, values, v = leading(weight, self.rank or min(weight.shape))
        made = self._made(name, u, values, v, torch.zeros_like(torch.diag(values)))
        return Made(made.masters, lambda: torch.matmul(*made.make()))

    def _made(self, name: str, u: Tensor, values: Tensor, v: Tensor, start: Tensor) -> Made:
        place = torch.arange(len(values), device=values.device)
        near = (place.unsqueeze(0) - place.unsqueeze(1)).abs() <= self.band
        size = values.square().mean().sqrt()
        unit = torch.where(near, torch.where(size > 0, size, 1.0), 0.0)
        core = trained(f"{name}.{self.name}", self.name, start, self.units(start, unit))
        return Made({self.name: core}, lambda: (u @ core.master, v))
