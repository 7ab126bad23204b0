from __future__ import annotations

import sys

import numpy as np
import pytest

from compress.checkpoint.cold.coder import decode, encode, library
from compress.checkpoint.cold.symbols import entropy, histogram
from compress.errors import UserError


def symbols_of(count: int, top: int = 15) -> np.ndarray:
    return np.random.default_rng(0).binomial(top, 0.4, count).astype(np.int32)


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
@pytest.mark.parametrize("top", [1, 15, 255])
def test_symbols_come_back(count: int, top: int) -> None:
    symbols = symbols_of(count, top)
    counts = histogram(symbols)
    assert np.array_equal(decode(encode(symbols, counts), counts, count), symbols)


def test_one_symbol_takes_no_bytes() -> None:
    symbols = np.zeros(100, dtype=np.int32)
    assert encode(symbols, histogram(symbols)) == b""
    assert np.array_equal(decode(b"", histogram(symbols), 100), symbols)


def test_a_part_is_coded_with_the_histogram_of_the_whole() -> None:
    symbols = np.array([0, 5, 5, 5, 9] * 50, dtype=np.int32)
    counts = histogram(symbols)
    part = symbols[:7]
    assert np.array_equal(decode(encode(part, counts), counts, 7), part)


def test_it_is_near_the_bound() -> None:
    symbols = symbols_of(200_000)
    coded = 8 * len(encode(symbols, histogram(symbols)))
    assert 1.0 <= coded / (len(symbols) * entropy(symbols)) < 1.001


def test_the_library_is_asked_for_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(UserError, match=r"compress-llm\[pack\]"):
        library()
