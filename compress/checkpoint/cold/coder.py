"""Asymmetric numeral systems: symbols with a fixed histogram in as many bits as their entropy says (Duda, arXiv:0902.0271).

The coder is constriction's, which is within a few thousandths of a percent of the bound.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from compress.checkpoint.cold.symbols import Symbols
from compress.errors import UserError

Counts = NDArray[np.int64]


def library() -> ModuleType:
    """The stream coders of constriction. Raises UserError where it is not installed."""
    try:
        import constriction  # noqa: PLC0415  (optional)
    except ImportError as error:
        raise UserError(
            f'Packing needs constriction, which does not load here ({error}): pip install "compress-llm[pack]".'
        ) from error
    stream: ModuleType = constriction.stream
    return stream


def encode(symbols: Symbols, counts: Counts) -> bytes:
    """Code ``symbols`` int32 ``[n]`` with their histogram; little endian 32-bit words."""
    if len(counts) < 2 or len(symbols) == 0:
        return b""
    stream = library()
    coder = stream.stack.AnsCoder()
    coder.encode_reverse(symbols, _model(stream, counts))
    return bytes(coder.get_compressed().astype("<u4").tobytes())


def decode(data: bytes, counts: Counts, count: int) -> Symbols:
    """The inverse of :func:`encode`: ``count`` symbols int32."""
    if len(counts) < 2 or count == 0:
        return np.zeros(count, dtype=np.int32)
    stream = library()
    coder = stream.stack.AnsCoder(np.frombuffer(data, dtype="<u4").astype(np.uint32))
    found: Symbols = coder.decode(_model(stream, counts), count)
    return found


def _model(stream: ModuleType, counts: Counts) -> object:
    """The histogram as probabilities: from whole numbers by one division, the same on every machine."""
    return stream.model.Categorical(counts.astype(np.float64) / float(counts.sum()), perfect=False)
