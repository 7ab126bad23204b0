"""Every element of a result is written, and nothing beyond it: memory that held NaN before makes no difference."""

from __future__ import annotations

import pytest
import torch
from compress_kernels.layouts import (
    Dense,
    Layout,
    LowRank,
    NormalFloat4,
    PackedInteger,
    PlainInteger,
    SparseBitmask,
    SumOf,
)
from compress_kernels.ops.table import prepare
from torch import Tensor

SHAPE = (33, 96)


def layouts() -> dict[str, tuple[Layout, dict[str, Tensor]]]:
    torch.manual_seed(0)
    codes, scale = torch.randint(0, 16, SHAPE), torch.rand(33, 3) + 0.1
    four, eight, normal, low = PackedInteger(4, 32), PlainInteger(8, "channel"), NormalFloat4(32), LowRank(5)
    mask = torch.rand(SHAPE) < 0.5
    bits, dense = SparseBitmask(int(mask.sum())), Dense()
    packed = four.encode(codes, scale)
    factors = low.encode(dense.encode(torch.randn(33, 5)), dense.encode(torch.randn(5, 96)))
    both = SumOf((four, low))
    return {
        "packed": (four, packed),
        "int8": (eight, eight.encode(codes + 120, scale[:, :1])),
        "nf4": (normal, normal.encode(codes, scale)),
        "bitmask": (bits, bits.encode(torch.randn(SHAPE), mask)),
        "low rank": (low, factors),
        "sum": (both, both.encode((packed, factors))),
    }


@pytest.mark.parametrize("name", ["packed", "int8", "nf4", "bitmask", "low rank", "sum"])
@pytest.mark.parametrize("rows", [1, 3, 17, 129, 400])
def test_poisoned_memory(name: str, rows: int) -> None:
    layout, tensors = layouts()[name]
    prepared = prepare(layout, tensors, SHAPE)
    x = torch.randn(rows, SHAPE[1]).to(torch.bfloat16)
    first = prepared(x)
    for shape in ((rows, 33), (rows, 5), (33, 96), (rows, 128), (16, 128)):
        for dtype in (torch.bfloat16, torch.float32):
            poison = [torch.full(shape, float("nan"), dtype=dtype) for _ in range(4)]
            del poison
    # A larger buffer of which x is the middle: what lies around it is not read.
    around = torch.full((rows + 2, SHAPE[1]), float("nan"), dtype=torch.bfloat16)
    around[1:-1] = x
    assert first.isfinite().all()
    assert torch.equal(prepared(around[1:-1]), first)
