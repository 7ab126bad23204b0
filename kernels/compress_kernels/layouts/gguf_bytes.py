"""The bytes of each GGUF block type: where scales, minima and the bits of the codes lie.

A block is a row of parts in order; a part packs one field, or some bits of it, into a fixed number of bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FieldTensors = dict[str, Tensor]
"""``codes`` int32 ``[blocks, block]``, ``scale`` and ``minimum`` fp32 ``[blocks]``, ``scales`` and ``minima`` int32
``[blocks, sub-blocks]``."""


@dataclass(frozen=True)
class Part:
    """Some bytes of a block. ``pack`` makes them, uint8 ``[blocks, size]``; ``unpack`` adds what they say to the fields."""

    size: int
    pack: Callable[[FieldTensors], Tensor]
    unpack: Callable[[Tensor, FieldTensors], None]


@dataclass(frozen=True)
class Plan:
    """The parts of a block type, in the order of the bytes."""

    parts: tuple[Part, ...]

    def pack(self, fields: FieldTensors) -> Tensor:
        """The blocks, uint8 ``[blocks, bytes]``."""
        return torch.cat([part.pack(fields) for part in self.parts], dim=1)

    def unpack(self, blocks: Tensor) -> FieldTensors:
        """Invert :meth:`pack`."""
        fields: FieldTensors = {}
        pieces = blocks.split([part.size for part in self.parts], dim=1)
        for part, piece in zip(self.parts, pieces, strict=True):
            part.unpack(piece.contiguous(), fields)
        return fields


def _half(name: str) -> Part:
    """An fp16 number."""

    def unpack(piece: Tensor, fields: FieldTensors) -> None:
        fields[name] = piece.view(torch.float16).float().view(-1)

    return Part(2, lambda fields: fields[name].to(torch.float16).view(-1, 1).view(torch.uint8), unpack)


def _power_of_two() -> Part:
    """E8M0 as ggml halves it: byte e is ``2^(e − 128)``."""

    def pack(fields: FieldTensors) -> Tensor:
        exponent = torch.frexp(fields["scale"]).exponent - 1
        return (exponent + 128).clamp(0, 254).to(torch.uint8).view(-1, 1)

    def unpack(piece: Tensor, fields: FieldTensors) -> None:
        fields["scale"] = torch.ldexp(torch.ones(len(piece), device=piece.device), piece.view(-1).int() - 128)

    return Part(1, pack, unpack)


def _codes(split: tuple[int, ...], axis: int, width: int, low: int) -> Part:
    """Bits ``low`` to ``low + width`` of the codes: the block is seen as ``split``, and along ``axis`` the entries share a
    byte, the first in its lowest bits."""
    count = split[axis]
    size = 1
    for index, extent in enumerate(split):
        size *= extent if index != axis else 1
    if count * width != 8:
        raise ValueError("the entries along the axis fill a byte")
    mask = (1 << width) - 1

    def pack(fields: FieldTensors) -> Tensor:
        bits = (fields["codes"] >> low) & mask
        seen = bits.view(-1, *split)
        shifts = _shifts(count, width, len(split) - axis - 1, seen.device)
        return (seen << shifts).sum(axis + 1).to(torch.uint8).reshape(len(bits), size)

    def unpack(piece: Tensor, fields: FieldTensors) -> None:
        shape = tuple(1 if index == axis else extent for index, extent in enumerate(split))
        shifts = _shifts(count, width, len(split) - axis - 1, piece.device)
        bits = (((piece.int().view(-1, *shape) >> shifts) & mask) << low).reshape(len(piece), -1)
        fields["codes"] = fields["codes"] | bits if "codes" in fields else bits

    return Part(size, pack, unpack)


def _shifts(count: int, width: int, trailing: int, device: torch.device) -> Tensor:
    steps = torch.arange(count, dtype=torch.int32, device=device) * width
    return steps.view(-1, *(1,) * trailing)


def _signed_bytes(name: str, size: int, zero: int) -> Part:
    """int8 numbers; the field is the number plus ``zero``."""

    def unpack(piece: Tensor, fields: FieldTensors) -> None:
        fields[name] = piece.view(torch.int8).int() + zero

    return Part(size, lambda fields: (fields[name] - zero).to(torch.int8).view(torch.uint8), unpack)


def _q2_scales() -> Part:
    """A scale in the low and a minimum in the high four bits of each byte."""

    def pack(fields: FieldTensors) -> Tensor:
        return (fields["scales"] | (fields["minima"] << 4)).to(torch.uint8)

    def unpack(piece: Tensor, fields: FieldTensors) -> None:
        fields["scales"], fields["minima"] = piece.int() & 15, piece.int() >> 4

    return Part(16, pack, unpack)


def _q3_scales() -> Part:
    """Sixteen 6-bit scales, 32 added: low four bits in eight bytes, high two bits in four."""

    def pack(fields: FieldTensors) -> Tensor:
        scales = fields["scales"] + 32
        low, high = scales & 15, (scales >> 4).view(-1, 4, 4)
        shifts = _shifts(4, 2, 1, scales.device)
        lows = low[:, :8] | (low[:, 8:] << 4)
        return torch.cat([lows, (high << shifts).sum(1)], dim=1).to(torch.uint8)

    def unpack(piece: Tensor, fields: FieldTensors) -> None:
        lows, highs = piece.int()[:, :8], piece.int()[:, 8:]
        low = torch.cat([lows & 15, lows >> 4], dim=1)
        high = (highs.unsqueeze(1) >> _shifts(4, 2, 1, piece.device)) & 3
        fields["scales"] = (low | (high.reshape(-1, 16) << 4)) - 32

    return Part(12, pack, unpack)


def _q4_scales() -> Part:
    """Eight 6-bit scales and eight 6-bit minima: the first four of each whole, the last four split over the high bits."""

    def pack(fields: FieldTensors) -> Tensor:
        scales, minima = fields["scales"], fields["minima"]
        first = scales[:, :4] | ((scales[:, 4:] >> 4) << 6)
        second = minima[:, :4] | ((minima[:, 4:] >> 4) << 6)
        third = (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4)
        return torch.cat([first, second, third], dim=1).to(torch.uint8)

    def unpack(piece: Tensor, fields: FieldTensors) -> None:
        first, second, third = piece.int().split(4, dim=1)
        fields["scales"] = torch.cat([first & 63, (third & 15) | ((first >> 6) << 4)], dim=1)
        fields["minima"] = torch.cat([second & 63, (third >> 4) | ((second >> 6) << 4)], dim=1)

    return Part(12, pack, unpack)


def _iq4_scales() -> tuple[Part, Part]:
    """Eight 6-bit scales, 32 added: the high two bits in 16 bits first, then the low four bits in four bytes."""

    def pack_high(fields: FieldTensors) -> Tensor:
        high = ((fields["scales"] + 32) >> 4).view(-1, 2, 4)
        return (high << _shifts(4, 2, 0, high.device)).sum(2).to(torch.uint8)

    def unpack_high(piece: Tensor, fields: FieldTensors) -> None:
        high = (piece.int().unsqueeze(2) >> _shifts(4, 2, 0, piece.device)) & 3
        fields["scales"] = (high.reshape(-1, 8) << 4) - 32

    def pack_low(fields: FieldTensors) -> Tensor:
        low = (fields["scales"] + 32) & 15
        return (low[:, ::2] | (low[:, 1::2] << 4)).to(torch.uint8)

    def unpack_low(piece: Tensor, fields: FieldTensors) -> None:
        low = torch.stack([piece.int() & 15, piece.int() >> 4], dim=2)
        fields["scales"] = fields["scales"] + low.reshape(-1, 8)

    return Part(2, pack_high, unpack_high), Part(4, pack_low, unpack_low)


_D, _M = _half("scale"), _half("minimum")
_NIBBLES = _codes((2, 16), 0, 4, 0)
_FIFTH_BITS = _codes((4, 8), 1, 1, 4)
_K_NIBBLES = _codes((4, 2, 32), 1, 4, 0)
_K_BITS = lambda bit: _codes((8, 32), 0, 1, bit)  # noqa: E731
_K_PAIRS = lambda low: _codes((2, 4, 32), 1, 2, low)  # noqa: E731

PACKERS: dict[str, Plan] = {
    "q4_0": Plan((_D, _NIBBLES)),
    "q4_1": Plan((_D, _M, _NIBBLES)),
    "q5_0": Plan((_D, _FIFTH_BITS, _NIBBLES)),
    "q5_1": Plan((_D, _M, _FIFTH_BITS, _NIBBLES)),
    "q8_0": Plan((_D, _signed_bytes("codes", 32, 128))),
    "q2_k": Plan((_q2_scales(), _K_PAIRS(0), _D, _M)),
    "q3_k": Plan((_K_BITS(2), _K_PAIRS(0), _q3_scales(), _D)),
    "q4_k": Plan((_D, _M, _q4_scales(), _K_NIBBLES)),
    "q5_k": Plan((_D, _M, _q4_scales(), _K_BITS(4), _K_NIBBLES)),
    "q6_k": Plan((_codes((2, 2, 64), 1, 4, 0), _K_PAIRS(4), _signed_bytes("scales", 16, 0), _D)),
    "iq4_nl": Plan((_D, _NIBBLES)),
    "iq4_xs": Plan((_D, *_iq4_scales(), _codes((8, 2, 16), 1, 4, 0))),
    "mxfp4": Plan((_power_of_two(), _NIBBLES)),
}
