"""``bits``: the single bits of every weight are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from compress_kernels.layouts import PackedInteger
from torch import Tensor

from compress.train.layers.base import Packed
from compress.train.layers.latent import SCALE, Code, LatentLayers


@dataclass(frozen=True)
class SignAndBits(Code):
    """``± Σ 2^i b_i`` with ``bits − 1`` bits b_i: latent numbers are the sign (1 is minus) and the bits, the lowest first."""

    bits: int

    @property
    def largest(self) -> float:  # type: ignore[override]
        """All bits."""
        return (1 << (self.bits - 1)) - 1

    def value(self, on: Tensor) -> Tensor:
        """See :class:`~compress.train.layers.latent.Code`."""
        powers = torch.tensor([float(1 << i) for i in range(self.bits - 1)], device=on.device)
        return (1 - 2 * on[..., 0]) * (on[..., 1:] @ powers)

    def nearest(self, values: Tensor) -> Tensor:
        """See :class:`~compress.train.layers.latent.Code`."""
        whole = values.round().clamp(-self.largest, self.largest)
        places = torch.arange(self.bits - 1, device=values.device)
        bits = (whole.abs().to(torch.int64).unsqueeze(-1) >> places) & 1
        return torch.cat([(values < 0).unsqueeze(-1), bits > 0], -1).to(torch.float32)

    def packed(self, on: Tensor, scale: Tensor) -> Packed:
        """A symmetric grid of so many bits with a scale by row, whose lowest code is not used."""
        layout = PackedInteger(self.bits, "channel", True, SCALE)
        codes = self.value(on).to(torch.int32) + (1 << (self.bits - 1))
        return Packed(layout, (on.shape[0], on.shape[1]), layout.encode(codes, scale.unsqueeze(1)))


@dataclass(frozen=True)
class Bits(LatentLayers):
    """Bit-wise training (arXiv:2202.09571): a weight is a sign and ``bits − 1`` bits, each the side of 0 that a trained number
    is on, times a scale of its row, which is trained here and fixed there."""

    name: ClassVar[str] = "bits"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits are 2 to 8, not {self.bits}")

    def code(self) -> SignAndBits:
        """See :class:`~compress.train.layers.latent.LatentLayers`."""
        return SignAndBits(self.bits)
