"""Packing of b-bit unsigned codes into 32-bit words, least significant bit first.

Code i of a row starts at bit ``i·b`` of that row, across word boundaries where b does not divide 32. This is the
packing of compressed-tensors since 0.18.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_WORD = 32
_MASK = 0xFFFFFFFF
_STRIP = 1 << 20


def words_for(count: int, bits: int) -> int:
    """How many 32-bit words hold ``count`` codes of ``bits`` bits."""
    return -(-count * bits // _WORD)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack unsigned codes ``[rows, count]`` (any integer dtype, below ``2**bits``) into int32 ``[rows, words]``."""
    return torch.cat([_pack(strip, bits) for strip in codes.split(_strip(codes.shape[1]))])


def _pack(codes: Tensor, bits: int) -> Tensor:
    rows, count = codes.shape
    # 32 codes fill exactly `bits` words, so one pass over the 32 places of a period packs everything.
    padded = F.pad(codes.to(torch.int64), (0, -count % _WORD)).view(rows, -1, _WORD)
    words = torch.zeros(rows, padded.shape[1], bits, dtype=torch.int64, device=codes.device)
    for place in range(_WORD):
        word, shift = divmod(place * bits, _WORD)
        value = padded[:, :, place]
        words[:, :, word] |= (value << shift) & _MASK
        if shift + bits > _WORD:
            words[:, :, word + 1] |= value >> (_WORD - shift)
    words = words.view(rows, -1)[:, : words_for(count, bits)]
    return _to_int32(words)


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """Invert :func:`pack`: int32 ``[rows, words]`` to int32 codes ``[rows, count]``."""
    return torch.cat([_unpack(strip, bits, count) for strip in words.split(_strip(count))])


def _unpack(words: Tensor, bits: int, count: int) -> Tensor:
    rows = words.shape[0]
    unsigned = F.pad(words.to(torch.int64) & _MASK, (0, -words.shape[1] % bits)).view(rows, -1, bits)
    codes = torch.empty(rows, unsigned.shape[1], _WORD, dtype=torch.int32, device=words.device)
    for place in range(_WORD):
        word, shift = divmod(place * bits, _WORD)
        value = unsigned[:, :, word] >> shift
        if shift + bits > _WORD:
            value = value | (unsigned[:, :, word + 1] << (_WORD - shift))
        codes[:, :, place] = value & ((1 << bits) - 1)
    return codes.view(rows, -1)[:, :count]


def _strip(count: int) -> int:
    """Rows at a time: the 64-bit intermediates take eight times the memory of what they hold."""
    return max(1, _STRIP // max(count, 1))


def _to_int32(words: Tensor) -> Tensor:
    """Unsigned 32-bit values held in int64, reinterpreted as int32."""
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32).contiguous()
