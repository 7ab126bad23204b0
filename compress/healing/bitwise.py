"""Codes of an integer grid whose single bits are trained."""

from __future__ import annotations

from typing import Any

import torch
from compress_kernels.layouts.bits import unpack
from torch import Tensor, nn

from compress.healing.trainables.base import CODES
from compress.healing.trainables.bits import Bits
from compress.healing.trained import Trained, TrainedGrid
from compress.linalg.straight_through import through


class TrainedBits(TrainedGrid):
    """An integer grid with a latent number for every bit of its codes.

    Args:
        rule: of the bits.
        The others as in :class:`~compress.healing.trained.TrainedGrid`.
    """

    def __init__(self, *arguments: Any, bits: Bits, lowest_zero: int = 0) -> None:
        self.of_bits = bits
        super().__init__(*arguments, lowest_zero=lowest_zero)

    def dense(self) -> Tensor:
        """See :class:`~compress.healing.trained.TrainedWeight`."""
        scale, zero = self._parameters(straight_through=True)
        codes = self.codes().view(self.shape[0], scale.shape[-1], -1)
        return ((codes - zero.unsqueeze(-1)) * scale.float().unsqueeze(-1)).view(self.shape)

    def codes(self) -> Tensor:
        """The codes now, fp32 ``[out, in]``, with gradients to the latent numbers."""
        latent = self.trained[CODES].master
        bits = through(latent, (latent > 0).to(torch.float32))
        return (bits * self._powers(latent)).sum(-1)

    def _whole_codes(self, scale: Tensor, zero: Tensor) -> Tensor:
        return self.codes()

    def _powers(self, like: Tensor) -> Tensor:
        places = torch.arange(self.layout.bits, device=like.device)
        return (1 << places).to(torch.float32)

    def _begin_codes(self, name: str, kind: str) -> Trained:
        """Latent numbers ``[out, in, bits]``, the lowest bit first; those that are not trained have a unit of 0."""
        codes = unpack(self.fixed[CODES], self.layout.bits, self.shape[1])
        places = torch.arange(self.layout.bits, device=codes.device)
        bits = (codes.unsqueeze(-1).to(torch.int64) >> places) & 1
        latent = self.of_bits.margin * (2.0 * bits.to(torch.float32) - 1)
        moves = places >= self.layout.bits - (self.of_bits.top or self.layout.bits)
        unit = moves.to(torch.float32).expand_as(latent)
        return Trained(name, kind, nn.Parameter(latent), unit, torch.float32, latent.clone())
