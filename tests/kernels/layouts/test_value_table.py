"""Tables of values: what they are, and codes that come back."""

from __future__ import annotations

import pytest
import torch
from compress_kernels.layouts import TableCodes
from compress_kernels.value_types import TABLE_BITS, table_values

KINDS = [(kind, bits) for kind, several in TABLE_BITS.items() for bits in several]


@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_values_rise_are_signed_alike_and_end_at_one(kind: str, bits: int) -> None:
    values = table_values(kind, bits)
    assert list(values) == sorted(set(values))
    assert [-value for value in reversed(values)] == list(values)
    assert values[-1] == 1.0
    assert len(values) <= 1 << bits


def test_shift_is_powers_of_two_without_zero() -> None:
    assert table_values("shift", 3) == (-1.0, -0.5, -0.25, -0.125, 0.125, 0.25, 0.5, 1.0)
    assert len(table_values("shift", 5)) == 32


def test_rf8_is_a_float_of_three_and_four_bits() -> None:
    expected = set()
    for code in range(256):
        sign, exponent, mantissa = code >> 7, code >> 4 & 7, code & 15
        size = mantissa / 16 if exponent == 0 else (1 + mantissa / 16) * 2.0 ** (exponent - 1)
        expected.add((-1) ** sign * size / ((1 + 15 / 16) * 64) + 0.0)
    assert set(table_values("rf8", 8)) == expected
    assert len(expected) == 255


@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_codes_come_back_and_are_decoded_in_float32(kind: str, bits: int) -> None:
    draw = torch.Generator().manual_seed(0)
    layout = TableCodes(kind, bits, 32, torch.float16)
    values = torch.tensor(table_values(kind, bits))
    codes = torch.randint(0, len(values), (5, 96), generator=draw)
    scale = torch.rand(5, 3, generator=draw).half()
    tensors = layout.encode(codes, scale.float())
    assert torch.equal(layout.codes(tensors, (5, 96)).long(), codes)
    expected = (values[codes].view(5, 3, 32) * scale.float().unsqueeze(-1)).view(5, 96)
    assert torch.equal(layout.decode(tensors, (5, 96), torch.float32), expected)
    assert torch.equal(layout.decode(tensors, (5, 96), torch.bfloat16), expected.bfloat16())


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(("shift", 8, 32), "not 8"), (("rf8", 4, 32), "not 4"), (("nf5", 4, 32), "no table")],
)
def test_what_there_is_not_is_refused(arguments: tuple[str, int, int], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        TableCodes(*arguments)


def test_groups_divide_the_columns() -> None:
    with pytest.raises(ValueError, match="groups of 32 do not divide 80"):
        TableCodes("shift", 4, 32).specs((2, 80))
