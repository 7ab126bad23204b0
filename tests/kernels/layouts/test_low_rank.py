"""Weights of parts: factors, whole columns and sums decode to what the parts make together."""

from __future__ import annotations

import pytest
import torch
from compress_kernels.layouts import Columns, Dense, LowRank, PackedInteger, SumOf
from torch import Tensor

SHAPE = (10, 32)


def factors(
    rank: int, dtype: torch.dtype = torch.float32
) -> tuple[LowRank, Tensor, Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(rank)
    left = torch.randn(SHAPE[0], rank, generator=generator)
    right = torch.randn(rank, SHAPE[1], generator=generator)
    layout = LowRank(rank, Dense(dtype), Dense(dtype))
    return layout, left, right, layout.encode(layout.left.encode(left), layout.right.encode(right))  # type: ignore[attr-defined]


@pytest.mark.parametrize("rank", [1, 3, 10, 32])
def test_factors_multiply(rank: int) -> None:
    layout, left, right, tensors = factors(rank)
    assert set(tensors) == {"left_weight", "right_weight"}
    torch.testing.assert_close(layout.decode(tensors, SHAPE, torch.float32), left @ right)


def test_the_product_is_rounded_once() -> None:
    layout, _, _, tensors = factors(4, torch.bfloat16)
    left, right = (tensors[name].float() for name in ("left_weight", "right_weight"))
    assert torch.equal(layout.decode(tensors, SHAPE, torch.bfloat16), (left @ right).to(torch.bfloat16))


def test_factors_come_back_in_any_dtype() -> None:
    layout, left, right, tensors = factors(4)
    found = layout.factors(tensors, SHAPE, torch.float64)
    assert torch.equal(found[0], left.double())
    assert torch.equal(found[1], right.double())


def test_factors_on_a_grid() -> None:
    grid = PackedInteger(4, 32, scale_dtype=torch.float32)
    layout = LowRank(2, Dense(torch.float32), grid)
    codes, scale = torch.randint(0, 16, (2, 32)), torch.rand(2, 1)
    left = torch.randn(10, 2)
    tensors = layout.encode(Dense(torch.float32).encode(left), grid.encode(codes, scale))
    expected = left @ ((codes - 8) * scale)
    torch.testing.assert_close(layout.decode(tensors, SHAPE, torch.float32), expected)


def test_columns_stand_in_their_places() -> None:
    layout, index = Columns(3, Dense(torch.float32)), torch.tensor([1, 7, 31])
    values = torch.randn(10, 3)
    tensors = layout.encode(index, Dense(torch.float32).encode(values))
    dense = layout.decode(tensors, SHAPE, torch.float32)
    assert torch.equal(dense[:, index], values)
    assert int((dense != 0).any(0).sum()) == 3
    found, back = layout.columns(tensors, SHAPE, torch.float32)
    assert torch.equal(found, index)
    assert torch.equal(back, values)


def test_sums_add_up_in_fp32_and_round_once() -> None:
    low_rank, left, right, of_factors = factors(2, torch.bfloat16)
    some, index = Columns(2), torch.tensor([0, 5])
    values = torch.randn(10, 2)
    of_columns = some.encode(index, Dense().encode(values))
    layout = SumOf((low_rank, some))
    tensors = layout.encode((of_factors, of_columns))
    assert tensors.keys() == layout.specs(SHAPE).keys()
    parts = low_rank.decode(of_factors, SHAPE, torch.float32), some.decode(of_columns, SHAPE, torch.float32)
    assert torch.equal(
        layout.decode(tensors, SHAPE, torch.bfloat16), (parts[0] + parts[1]).to(torch.bfloat16)
    )
    assert layout.tensors_of(1, tensors).keys() == of_columns.keys()
    assert not torch.equal(left @ right, parts[0])  # bf16 factors: the sum is of what is stored
