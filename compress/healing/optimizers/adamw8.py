"""``adamw8``: AdamW whose moments take a byte each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.healing.optimizers.adamw import AdamW

BLOCK = 256
"""Numbers that share a largest magnitude."""
HOST = torch.device("cpu")
WHOLE = 4096
"""Tensors of fewer numbers keep fp32 moments, as in bitsandbytes."""


@dataclass(frozen=True)
class AdamW8(AdamW):
    """:class:`~compress.healing.optimizers.adamw.AdamW` with both moments in 8 bits (Dettmers et al., arXiv:2110.02861).

    A moment is divided by the largest magnitude of its block of 256 numbers and rounded to the nearest of the 256 values of the
    dynamic tree (the second moment to that without a sign): the values and blocks of bitsandbytes, in operators of torch that
    run on every device. State: 2.03 bytes a number, not 8. A second moment that rounds to 0 would make its step endless: it is
    held at the least value above 0 where the gradient is not 0.
    """

    name: ClassVar[str] = "adamw8"
    together: ClassVar[bool] = False

    def begin(self, master: Tensor) -> dict[str, Tensor]:
        """Codes uint8 ``[blocks, 256]`` and largest magnitudes fp32 ``[blocks, 1]`` of both moments."""
        if master.numel() < WHOLE:
            return super().begin(master)
        state: dict[str, Tensor] = {}
        for moment, signed in (("mean", True), ("square", False)):
            codes, largest = in_a_byte(torch.zeros_like(master), signed=signed)
            state |= {f"{moment}_codes": codes, f"{moment}_largest": largest}
        return state

    def step(
        self, master: Tensor, gradient: Tensor, state: dict[str, Tensor], *, rate: Tensor, count: int | Tensor
    ) -> None:
        """See :class:`~compress.healing.optimizers.base.Optimizer`."""
        if "mean" in state:
            super().step(master, gradient, state, rate=rate, count=count)
            return
        moments = {
            moment: from_bytes(
                state[f"{moment}_codes"], state[f"{moment}_largest"], master.shape, signed=signed
            )
            for moment, signed in (("mean", True), ("square", False))
        }
        super().step(master, gradient, moments, rate=rate, count=count)
        for moment, signed in (("mean", True), ("square", False)):
            codes, largest = in_a_byte(moments[moment], signed=signed)
            if not signed:
                codes = torch.where(_blocks(gradient != 0), codes.clamp(min=1), codes)
            state[f"{moment}_codes"].copy_(codes)
            state[f"{moment}_largest"].copy_(largest)


@cache
def dynamic_tree(signed: bool, device: torch.device = HOST) -> Tensor:
    """The 256 values fp32 in rising order, from −1 (or 0) to 1: 0, 1, and the middles of 2^i (or 2^(i+1)) equal parts between
    10^(i−7) and 10^(i−6), i from 0 to 6 (arXiv:2110.02861, section 1.3)."""
    values = [0.0, 1.0]
    for i in range(7):
        ends = torch.linspace(0.1, 1, 2 ** (i if signed else i + 1) + 1)
        middles = 10.0 ** (i - 6) * 0.5 * (ends[:-1] + ends[1:])
        values += [*middles.tolist(), *((-middles).tolist() if signed else ())]
    return torch.tensor(sorted(values), dtype=torch.float32, device=device)


def in_a_byte(values: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes uint8 ``[blocks, 256]`` and largest magnitudes fp32 ``[blocks, 1]`` of a tensor."""
    blocks, table = _blocks(values), dynamic_tree(signed, values.device)
    largest = blocks.abs().amax(1, keepdim=True)
    places = blocks / torch.where(largest > 0, largest, 1.0)
    codes = torch.bucketize(places, 0.5 * (table[:-1] + table[1:])).to(torch.uint8)
    return codes, largest


def from_bytes(codes: Tensor, largest: Tensor, shape: torch.Size, *, signed: bool) -> Tensor:
    """The tensor fp32 of ``shape`` that :func:`in_a_byte` made the codes of."""
    values = dynamic_tree(signed, codes.device)[codes.long()] * largest
    return values.flatten()[: shape.numel()].view(shape)


def _blocks(values: Tensor) -> Tensor:
    flat = values.flatten()
    return F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
