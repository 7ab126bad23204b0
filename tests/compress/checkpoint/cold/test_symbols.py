from __future__ import annotations

import numpy as np
import pytest
import torch
from compress_kernels.layouts.bits import pack

from compress.checkpoint.cold.symbols import CODE_BITS, Split, choose_split, entropy, entropy_of


def codes_of(bits: int, columns: int = 128) -> torch.Tensor:
    draw = torch.Generator().manual_seed(bits)
    return (torch.randn(12, columns, generator=draw) * 0.8 + 2 ** (bits - 1)).round().clamp(0, 2**bits - 1)


def bytes_of(tensor: torch.Tensor) -> np.ndarray:
    return np.frombuffer(tensor.numpy().tobytes(), dtype=np.uint8)


@pytest.mark.parametrize("bits", CODE_BITS)
@pytest.mark.parametrize("row", [1, 3, 7, 40])
def test_bytes_come_back(bits: int, row: int) -> None:
    data = np.random.default_rng(0).integers(0, 256, 9 * row, dtype=np.uint8)
    split = Split(bits, 1, row)
    (stream,) = split.streams(data)
    assert stream.max() < 1 << bits
    assert np.array_equal(split.join([stream], len(data)), data)


def test_planes_come_back() -> None:
    data = np.random.default_rng(0).integers(0, 256, 24, dtype=np.uint8)
    split = Split(8, 4, 24)
    streams = list(split.streams(data))
    assert [one.tolist() for one in streams] == [data[place::4].tolist() for place in range(4)]
    assert np.array_equal(split.join(streams, 24), data)
    assert split.join([np.zeros(0, np.int32)] * 4, 0).size == 0


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7])
def test_packed_codes_are_found(bits: int) -> None:
    codes = codes_of(bits)
    words = pack(codes, bits)
    split = choose_split(bytes_of(words), 4, tuple(words.shape), whole_numbers=True)
    assert (split.bits, split.planes) == (bits, 1)
    (stream,) = split.streams(bytes_of(words))
    assert np.array_equal(stream.reshape(12, 128), codes.numpy().astype(np.int32))


def test_floats_are_split_by_their_bytes() -> None:
    weight = torch.randn(4, 8).bfloat16()
    assert choose_split(bytes_of(weight.view(torch.int16)), 2, (4, 8), whole_numbers=False) == Split(8, 2, 16)


def test_entropy_in_bits() -> None:
    assert entropy(np.array([0, 1, 2, 3] * 5, dtype=np.int32)) == pytest.approx(2.0)
    assert entropy(np.zeros(9, dtype=np.int32)) == 0.0
    assert entropy_of(np.array([3, 0, 1])) == pytest.approx(0.8112781)
    assert entropy(np.zeros(0, dtype=np.int32)) == 0.0
