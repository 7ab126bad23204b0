"""Order of codes in 32-bit words for a GPU.

A width that is not a power of two is split into planes, widest first: 3 = 2 + 1. The first plane's words hold 32 / bits codes
each; 16 of them are a chunk, in which code i of word j is column ``16 i + j``. So code i of all words meets 16 columns of x
that follow each other, and 16 columns lie in one group.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WORDS = 16
"""Words of a chunk."""
_STRIP = 1 << 25
"""Codes that are brought into order together."""


def plane_bits(bits: int) -> tuple[int, int, int]:
    """A width as at most three powers of two, widest first, then zeros: 3 = 2 + 1, 7 = 4 + 2 + 1."""
    widths = [width for width in (8, 4, 2, 1) if bits & width]
    return (*widths, 0, 0, 0)[:3]  # type: ignore[return-value]


def chunk_columns(bits: int) -> int:
    """Columns of a chunk."""
    return WORDS * (32 // plane_bits(bits)[0])


def to_planes(codes: Tensor, bits: int) -> tuple[Tensor, ...]:
    """Codes uint8 ``[out, in]`` as planes int32 ``[out, words]``; rows are filled up to whole chunks."""
    strips = [_to_planes(strip, bits) for strip in codes.split(max(1, _STRIP // max(1, codes.shape[1])))]
    return tuple(torch.cat(parts) for parts in zip(*strips, strict=True))


def _to_planes(codes: Tensor, bits: int) -> list[Tensor]:
    chunk = chunk_columns(bits)
    padded = F.pad(codes, (0, -codes.shape[1] % chunk))
    ordered = padded.view(len(codes), -1, chunk // WORDS, WORDS).transpose(-1, -2).reshape(padded.shape)
    planes, shift = [], 0
    for width in filter(None, plane_bits(bits)):
        planes.append(_pack(ordered >> shift, width))
        shift += width
    return planes


def from_planes(planes: tuple[Tensor, ...] | list[Tensor], bits: int, columns: int) -> Tensor:
    """Invert :func:`to_planes`: codes uint8 ``[out, columns]``."""
    chunk, shift = chunk_columns(bits), 0
    codes: Tensor | None = None
    for width, plane in zip(filter(None, plane_bits(bits)), planes, strict=True):
        part = _unpack(plane, width) << shift
        codes = part if codes is None else codes | part
        shift += width
    assert codes is not None
    ordered = codes.view(len(codes), -1, WORDS, chunk // WORDS).transpose(-1, -2)
    return ordered.reshape(codes.shape)[:, :columns].contiguous()


def _pack(codes: Tensor, width: int) -> Tensor:
    """The lowest ``width`` bits of codes uint8 ``[out, n]``, low bits first, int32 ``[out, n · width / 32]``."""
    octets = codes & ((1 << width) - 1)
    if width < 8:
        parts = octets.unflatten(-1, (-1, 8 // width))
        octets = parts[..., 0].clone()
        for place in range(1, 8 // width):
            octets |= parts[..., place] << (place * width)
    return octets.contiguous().view(torch.int32)


def _unpack(words: Tensor, width: int) -> Tensor:
    octets = words.contiguous().view(torch.uint8)
    if width == 8:
        return octets
    mask = (1 << width) - 1
    return torch.stack([(octets >> place) & mask for place in range(0, 8, width)], -1).flatten(-2)
