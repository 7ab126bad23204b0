"""``sorsa``: the leading singular vectors of a weight and their singular values, apart from each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from compress_kernels.layouts import Layout, Shape
from torch import Tensor

from compress.healing.adapted import Made, size_of, trained
from compress.healing.trainables.adapter import OnFactors
from compress.healing.trainables.base import low_rank_parts
from compress.linalg.leading_triples import leading


@dataclass(frozen=True)
class SORSA(OnFactors):
    """``W_rest + U diag(s) Vᵀ`` of the ``rank`` leading singular triples, which move, while the rest stays (SORSA,
    arXiv:2409.00055); penalty ``orthonormal`` keeps U and V at right angles.

    A low-rank part is decomposed whole, or, where it is 0, it begins in the leading directions of what is beside it with s at
    0; the change of a dense weight counts from 0.
    """

    rank: int = 16

    name: ClassVar[str] = "sorsa"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise ValueError("rank is at least 1")

    def numbers(self, layout: Layout, shape: Shape) -> int:
        """How many numbers are trained of a packed weight."""
        return sum(low.rank * (1 + sum(of)) for _, low, of in low_rank_parts(layout, shape))

    def part(self, name: str, left: Tensor, right: Tensor, rest: Tensor) -> Made:
        """See :class:`~compress.healing.adapted.Adapter`."""
        product = left @ right
        own = bool(product.any())
        u, values, v = leading(product if own else rest, left.shape[1])
        return self._made(name, u, values, v, values if own else torch.zeros_like(values))

    def change(self, name: str, weight: Tensor) -> Made:
        """See :class:`~compress.healing.adapted.Adapter`."""
        u, values, v = leading(weight, min(self.rank, *weight.shape))
        made, start = self._made(name, u, values, v, values), u * values @ v
        return Made(made.masters, lambda: torch.matmul(*made.make()) - start)

    def _made(self, name: str, u: Tensor, values: Tensor, v: Tensor, start: Tensor) -> Made:
        masters = {
            side: trained(f"{name}.{side}", self.name, one, self.units(one, size_of(scale)))
            for side, one, scale in (("left", u, u), ("values", start, values), ("right", v, v))
        }
        return Made(
            masters, lambda: (masters["left"].master * masters["values"].master, masters["right"].master)
        )
