"""``loldu``: the diagonal between a lower and an upper triangle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from compress_kernels.layouts import Layout, Shape
from torch import Tensor

from compress.healing.adapted import Made, size_of, trained
from compress.healing.trainables.adapter import OnFactors
from compress.healing.trainables.base import low_rank_parts


@dataclass(frozen=True)
class LoLDU(OnFactors):
    """``W = P L D U`` with unit triangles; of its first ``rank`` columns and rows the diagonal D moves, and P, L and U stay
    (LoLDU, arXiv:2410.13618).

    Of a low-rank part it is the decomposition of the part, or, where that is 0, of what is beside it with D beginning at 0; of
    a dense weight the change of D counts from 0 (0: as many as there are).
    """

    rank: int = 0

    name: ClassVar[str] = "loldu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 0:
            raise ValueError("rank is 0 or more")

    def numbers(self, layout: Layout, shape: Shape) -> int:
        """How many numbers are trained of a packed weight, about."""
        return sum(low.rank for _, low, of in low_rank_parts(layout, shape))

    def part(self, name: str, left: Tensor, right: Tensor, rest: Tensor) -> Made:
        """See :class:`~compress.healing.adapted.Adapter`."""
        product, rank = left @ right, left.shape[1]
        own = bool(product.any())
        lower, diagonal, upper = triangles(product if own else rest, rank)
        return self._made(name, lower, diagonal, upper, diagonal if own else torch.zeros_like(diagonal))

    def change(self, name: str, weight: Tensor) -> Made:
        """See :class:`~compress.healing.adapted.Adapter`."""
        lower, diagonal, upper = triangles(weight, self.rank or min(weight.shape))
        made = self._made(name, lower, diagonal, upper, torch.zeros_like(diagonal))
        return Made(made.masters, lambda: torch.matmul(*made.make()))

    def _made(self, name: str, lower: Tensor, diagonal: Tensor, upper: Tensor, start: Tensor) -> Made:
        one = trained(f"{name}.{self.name}", self.name, start, self.units(start, size_of(diagonal)))
        return Made({self.name: one}, lambda: (lower * one.master, upper))


def triangles(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first ``rank`` columns of P L, of the diagonal D ``[rank]``, and rows of U, of ``matrix = P L D U``.

    A matrix of this rank is their product. A row of U whose pivot is almost 0 keeps its length, with 1 in D.
    """
    permutation, lower, upper = torch.linalg.lu(matrix.double())
    upper = upper[:rank]
    pivots = upper.diagonal()
    usable = pivots.abs() > 1e-6 * pivots.abs().amax()
    diagonal = torch.where(usable, pivots, 1.0)
    found = ((permutation @ lower)[:, :rank], diagonal, upper / diagonal.unsqueeze(1))
    return tuple(one.to(matrix.dtype).contiguous() for one in found)  # type: ignore[return-value]
