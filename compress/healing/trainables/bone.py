"""``bone``: one block of numbers for every group of inputs or outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from compress_kernels.layouts import Layout, Shape
from torch import Tensor

from compress.errors import UserError
from compress.healing.adapted import Made, size_of, trained
from compress.healing.trainables.adapter import OnFactors
from compress.healing.trainables.base import low_rank_parts


@dataclass(frozen=True)
class Bone(OnFactors):
    """The block-affine adapter (Bone, arXiv:2409.15371).

    - A low-rank part becomes ``B [out, rank]`` times identities side by side ``[rank, in]``: every group of ``rank`` inputs is
      added the same block. It has to be 0 at the start, as solver ``lora`` and ``eva`` leave it.
    - A dense weight in blocks ``W_ij [size, size]`` becomes ``W_ij + W_ij b_i + b_i``, ``b_i`` one for all blocks of the same
      outputs (Bat: the change is guided by the weight). Where ``size`` does not divide both sides, the largest
      smaller one that does is taken.
    """

    size: int = 16

    name: ClassVar[str] = "bone"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1:
            raise ValueError("size is at least 1")

    def numbers(self, layout: Layout, shape: Shape) -> int:
        """How many numbers are trained of a packed weight, about."""
        return sum(low.rank * of[0] for _, low, of in low_rank_parts(layout, shape))

    def part(self, name: str, left: Tensor, right: Tensor, rest: Tensor) -> Made:
        """See :class:`~compress.healing.adapted.Adapter`."""
        if bool((left @ right).any()):
            raise UserError(
                f"heal: 'bone' begins at a low-rank part of 0, and that of {name.rstrip('.')} is not: compress with solver "
                "'lora' or 'eva'"
            )
        rank, inputs = right.shape
        place = torch.arange(inputs, device=right.device)
        tiles = (place % rank == torch.arange(rank, device=right.device).unsqueeze(1)).to(right.dtype)
        block = trained(
            f"{name}.{self.name}", self.name, torch.zeros_like(left), self.units(left, size_of(rest))
        )
        return Made({self.name: block}, lambda: (block.master, tiles))

    def change(self, name: str, weight: Tensor) -> Made:
        """See :class:`~compress.healing.adapted.Adapter`."""
        out, inputs = weight.shape
        size = next(s for s in range(self.size, 0, -1) if out % s == 0 and inputs % s == 0)
        blocks = weight.view(out // size, size, inputs // size, size).permute(2, 0, 1, 3)
        start = weight.new_zeros(out // size, size, size)
        block = trained(f"{name}.{self.name}", self.name, start, self.units(start, size_of(weight)))

        def make() -> Tensor:
            changed = blocks @ block.master + block.master
            return changed.permute(1, 2, 0, 3).reshape(out, inputs)

        return Made({self.name: block}, make)
