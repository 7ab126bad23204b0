"""Codes in 32-bit words, against arithmetic on Python's own integers."""

from __future__ import annotations

import pytest
import torch
from compress_kernels.layouts.bits import pack, unpack, words_for


def slow_pack(row: list[int], bits: int) -> list[int]:
    """The codes of a row as one long number, cut into signed 32-bit words, lowest first."""
    number = sum(code << (place * bits) for place, code in enumerate(row))
    words = [number >> (32 * index) & 0xFFFFFFFF for index in range(words_for(len(row), bits))]
    return [word - (1 << 32) if word >= 1 << 31 else word for word in words]


def codes_of(rows: int, count: int, bits: int) -> torch.Tensor:
    codes = torch.randint(0, 1 << bits, (rows, count), generator=torch.Generator().manual_seed(bits))
    codes[0, 0], codes[-1, -1] = (1 << bits) - 1, 0
    return codes


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 5, 31, 32, 33, 100])
def test_words_are_the_rows_number(bits: int, count: int) -> None:
    codes = codes_of(3, count, bits)
    packed = pack(codes, bits)
    assert packed.dtype == torch.int32
    assert packed.tolist() == [slow_pack(row, bits) for row in codes.tolist()]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_unpacking_gives_the_codes_back(bits: int, dtype: torch.dtype) -> None:
    codes = codes_of(7, 77, bits).to(dtype)
    found = unpack(pack(codes, bits), bits, 77)
    assert found.dtype == torch.int32
    assert torch.equal(found, codes.to(torch.int32))


@pytest.mark.parametrize(
    ("count", "bits", "words"), [(32, 3, 3), (33, 3, 4), (1, 8, 1), (4, 8, 1), (5, 8, 2)]
)
def test_words_for(count: int, bits: int, words: int) -> None:
    assert words_for(count, bits) == words


def test_many_rows_go_through_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = codes_of(50, 64, 4)
    whole = pack(codes, 4)
    monkeypatch.setattr("compress_kernels.layouts.bits._STRIP", 64 * 7)
    assert torch.equal(pack(codes, 4), whole)
    assert torch.equal(unpack(whole, 4, 64), codes.to(torch.int32))


def test_a_sliced_view_is_packed_like_its_copy() -> None:
    codes = codes_of(6, 40, 5)
    assert torch.equal(pack(codes[::2, 3:30], 5), pack(codes[::2, 3:30].contiguous(), 5))
