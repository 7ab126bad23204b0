"""``groups``: whole rows, columns or blocks shrink, those of the least length."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from compress.errors import UserError
from compress.train.masks.base import Weights, check_settled


@dataclass(frozen=True)
class Groups:
    """Groups of weights, of which all but the k longest are divided by ``1 + strength`` in every step: the proximal step of
    ``strength/2 · Σ ‖w_g‖²`` over the groups outside the k longest.

    So a preset number of groups is kept at linear cost, as by the weighted group sparse envelope (WGSEF), whose weights are
    left out. A group is one of the ``rows`` of a weight (an output), one of its ``columns`` (an input), or all weights of one
    of the ``blocks``, which the numbers in the layers' names tell apart and whose lengths are root mean squares. At the end
    whole groups are 0 and can be left out.
    """

    of: Literal["rows", "columns", "blocks"] = "rows"
    strength: float = 0.05
    settled: float = 0.75

    name: ClassVar[str] = "groups"

    def __post_init__(self) -> None:
        check_settled(self.settled)
        if self.strength <= 0:
            raise ValueError("strength is above 0")

    def begin(self, weights: Weights, sparsity: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Nothing; without numbers in the names of the layers there are no blocks.

        Raises:
            UserError: ``blocks`` of layers that have none.
        """
        if self.of == "blocks" and len(set(map(block_of, weights))) < 2:
            raise UserError(
                "masks 'groups': these layers are in no numbered blocks: take 'rows' or 'columns'"
            )
        return {}

    @torch.no_grad()
    def after_step(
        self, weights: Weights, state: dict[str, Tensor], *, sparsity: float, done: float, rate: float
    ) -> None:
        """See :class:`~compress.train.masks.base.Masks`."""
        for name, mask in self._kept(weights, sparsity).items():
            weights[name].mul_(torch.where(mask, 1.0, 1 / (1 + self.strength)))

    def settle(self, weights: Weights, state: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """See :class:`~compress.train.masks.base.Masks`."""
        kept = self._kept(weights, sparsity)
        return {name: mask.expand_as(weights[name]).clone() for name, mask in kept.items()}

    def _kept(self, weights: Weights, sparsity: float) -> dict[str, Tensor]:
        """Bool, ``[out, 1]``, ``[1, in]`` or ``[1, 1]``, by weight."""
        if self.of == "blocks":
            return longest_blocks(weights, sparsity)
        if self.of == "columns":
            return {name: longest(weight.T, sparsity).T for name, weight in weights.items()}
        return {name: longest(weight, sparsity) for name, weight in weights.items()}


def block_of(name: str) -> str:
    """The name of a layer up to its first number; all of it where there is none: ``model.layers.3`` of
    ``model.layers.3.mlp.up_proj``."""
    found = re.match(r"(?:.*?\.)??\d+(?=\.|$)", name)
    return found.group() if found else ""


def longest_blocks(weights: Weights, sparsity: float) -> dict[str, Tensor]:
    """The mask, bool ``[1, 1]``, of the ``1 − sparsity`` of the blocks with the largest root mean square; what is in none is
    kept."""
    squares: dict[str, list[Tensor]] = {}
    for name, weight in weights.items():
        squares.setdefault(block_of(name), []).append(weight.detach().flatten().square())
    blocks = [block for block in squares if block]
    size = torch.stack([torch.cat(squares[block]).mean() for block in blocks])
    order = size.argsort(descending=True, stable=True)[: len(blocks) - round(sparsity * len(blocks))]
    kept = {"", *(blocks[int(place)] for place in order)}
    return {
        name: torch.full((1, 1), block_of(name) in kept, dtype=torch.bool, device=weight.device)
        for name, weight in weights.items()
    }


def longest(weight: Tensor, sparsity: float) -> Tensor:
    """The mask, bool ``[out, 1]``, of the ``1 − sparsity`` of the rows with the largest lengths."""
    kept = weight.shape[0] - round(sparsity * weight.shape[0])
    order = weight.detach().norm(dim=1).argsort(descending=True, stable=True)
    mask = torch.zeros(weight.shape[0], dtype=torch.bool, device=weight.device)
    return mask.index_fill_(0, order[:kept], True).unsqueeze(1)
