"""``shift``: every weight is a signed power of two, and learns its sign and its shift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from compress_kernels.layouts import TableCodes
from compress_kernels.value_types import TABLE_BITS
from torch import Tensor

from compress.train.layers.base import Packed
from compress.train.layers.latent import SCALE, Code, LatentLayers


@dataclass(frozen=True)
class SignAndShift(Code):
    """``± 2^(s − t)`` with s from 0 to ``t = 2^(bits−1) − 1``: latent numbers are the sign (1 is minus) and t steps, where
    ``s_0 = 0`` and ``s_i = on_i · (s_(i−1) + 1)``: s counts the steps behind the last one that is off."""

    bits: int
    largest: ClassVar[float] = 1.0  # type: ignore[misc]

    @property
    def steps(self) -> int:
        """t."""
        return (1 << (self.bits - 1)) - 1

    def value(self, on: Tensor) -> Tensor:
        """See :class:`~compress.train.layers.latent.Code`."""
        return (1 - 2 * on[..., 0]) * torch.exp2(self._shift(on) - self.steps)

    def nearest(self, values: Tensor) -> Tensor:
        """See :class:`~compress.train.layers.latent.Code`; a value lies between two powers at their mean."""
        powers = torch.exp2(torch.arange(-self.steps, 1, device=values.device, dtype=torch.float32))
        shift = torch.bucketize(values.abs().contiguous(), (powers[1:] + powers[:-1]) / 2)
        places = torch.arange(self.steps, device=values.device)
        on = places >= self.steps - shift.unsqueeze(-1)
        return torch.cat([(values < 0).unsqueeze(-1), on], -1).to(torch.float32)

    def packed(self, on: Tensor, scale: Tensor) -> Packed:
        """Codes of the table ``shift`` with a scale by row."""
        shape = (on.shape[0], on.shape[1])
        layout = TableCodes("shift", self.bits, shape[1], SCALE)
        shift = self._shift(on).to(torch.int32)
        codes = torch.where(on[..., 0] > 0, self.steps - shift, self.steps + 1 + shift)
        return Packed(layout, shape, layout.encode(codes, scale.unsqueeze(1)))

    def _shift(self, on: Tensor) -> Tensor:
        shift = torch.zeros_like(on[..., 0])
        for place in range(1, on.shape[-1]):
            shift = on[..., place] * (shift + 1)
        return shift


@dataclass(frozen=True)
class Shift(LatentLayers):
    """DenseShift (arXiv:2208.09708): weights are signed powers of two without a zero, whose signs and shifts are trained apart,
    from latent numbers of low variance.

    A weight of b bits takes ``2^(b−1)`` latent numbers. The scale of a row is our addition: there a batch norm follows.
    """

    bits: int = 3

    name: ClassVar[str] = "shift"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in TABLE_BITS["shift"]:
            known = TABLE_BITS["shift"]
            raise ValueError(f"bits of 'shift' are {known[0]} to {known[-1]}, not {self.bits}")

    def code(self) -> SignAndShift:
        """See :class:`~compress.train.layers.latent.LatentLayers`."""
        return SignAndShift(self.bits)
