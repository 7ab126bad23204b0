"""A tensor's bytes as a stream of symbols: codes of b bits, or the bytes of each place of a wide number by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Symbols = NDArray[np.int32]

CODE_BITS = (2, 3, 4, 5, 6, 7, 8)
"""Widths of codes that are tried on tensors of whole numbers."""
_TRIAL = 1 << 16
"""Bytes of a tensor that a width is chosen by."""
_STRIP = 1 << 20
"""Bytes that become bits together."""


_COUNT = 16
"""Bits that a count of a histogram takes, about."""


@dataclass(frozen=True)
class Split:
    """How a tensor's bytes become symbols.

    Attributes:
        bits: of a symbol, least significant bit first; a row's last symbol may have fewer.
        planes: bytes of a number, each place of which is a stream of its own; 1 for codes.
        row: bytes of a row, in which codes are packed by themselves.
    """

    bits: int
    planes: int
    row: int

    def streams(self, data: Bytes) -> Iterator[Symbols]:
        """The symbols of ``data`` uint8 ``[bytes]``, one stream for each plane."""
        if self.planes > 1:
            for place in range(self.planes):
                yield data[place :: self.planes].astype(np.int32)
            return
        yield _codes(data, self.bits, self.row)

    def join(self, streams: list[Symbols], nbytes: int) -> Bytes:
        """The inverse of :meth:`streams`."""
        if self.planes > 1:
            out = np.empty(nbytes, dtype=np.uint8)
            for place, stream in enumerate(streams):
                out[place :: self.planes] = stream
            return out
        return _bytes(streams[0], self.bits, self.row)


def _codes(data: Bytes, bits: int, row: int) -> Symbols:
    if bits == 8:
        return data.astype(np.int32)
    each = -(-8 * row // bits)
    rows = data.reshape(-1, row)
    out = np.empty((len(rows), each), dtype=np.int32)
    for strip in _strips(len(rows), row):
        stream = np.unpackbits(rows[strip], axis=1, bitorder="little")
        stream = np.pad(stream, ((0, 0), (0, each * bits - 8 * row)))
        codes = out[strip]
        codes[:] = 0
        for place in range(bits):
            codes |= stream[:, place::bits].astype(np.int32) << place
    return out.reshape(-1)


def _bytes(codes: Symbols, bits: int, row: int) -> Bytes:
    if bits == 8:
        return codes.astype(np.uint8)
    each = -(-8 * row // bits)
    rows = codes.reshape(-1, each)
    out = np.empty((len(rows), row), dtype=np.uint8)
    for strip in _strips(len(rows), row):
        part = rows[strip]
        stream = np.empty((len(part), each * bits), dtype=np.uint8)
        for place in range(bits):
            stream[:, place::bits] = (part >> place) & 1
        out[strip] = np.packbits(stream[:, : 8 * row], axis=1, bitorder="little")
    return out.reshape(-1)


def _strips(rows: int, row: int) -> Iterator[slice]:
    """Rows that are handled together: bits take eight times the memory of bytes."""
    step = max(1, _STRIP // row)
    for first in range(0, rows, step):
        yield slice(first, first + step)


def choose_split(data: Bytes, itemsize: int, shape: tuple[int, ...], *, whole_numbers: bool) -> Split:
    """The split of least entropy.

    Args:
        data: uint8 ``[bytes]``.
        itemsize: bytes of an element.
        shape: of the tensor.
        whole_numbers: whether its elements may hold packed codes.
    """
    row = max(1, (shape[-1] if shape else 1) * itemsize)
    if not whole_numbers:
        return Split(8, itemsize, row)
    # Whole rows, so that codes that cross words are met where they begin.
    trial = data[: max(row, _TRIAL // row * row)]
    tried = [Split(8, itemsize, row), *(Split(bits, 1, row) for bits in CODE_BITS)]
    return min(tried, key=lambda split: sum(map(_cost, split.streams(trial))))


def _cost(symbols: Symbols) -> float:
    """Bits of a stream with its histogram: few symbols of many kinds look as if they held little."""
    counts = histogram(symbols)
    return len(symbols) * entropy_of(counts) + _COUNT * len(counts)


def histogram(symbols: Symbols) -> NDArray[np.int64]:
    """How often each symbol occurs, as long as the largest one needs."""
    return np.bincount(symbols).astype(np.int64)


def entropy(symbols: Symbols) -> float:
    """Bits that a symbol holds on average, each drawn by itself."""
    return entropy_of(histogram(symbols))


def entropy_of(counts: NDArray[np.int64]) -> float:
    """The same from a histogram."""
    share = counts[counts > 0] / max(1, counts.sum())
    return float(-(share * np.log2(share)).sum())
