"""Weights that servers run as one have one scheme; what may differ in it, and what may not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compress_kernels.layouts import Dense, Layout, LowRank, PackedInteger, SparseBitmask, SumOf

from compress.errors import UserError
from compress.planning.fused_groups import check_fused_groups

GROUP = [SimpleNamespace(name="q"), SimpleNamespace(name="k")]
SKELETON: Any = SimpleNamespace(views=GROUP, fused_groups=lambda views: [GROUP])


def low_rank(rank: int) -> LowRank:
    return LowRank(rank, Dense(torch.bfloat16), Dense(torch.bfloat16))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (PackedInteger(4), PackedInteger(4)),
        (low_rank(8), low_rank(16)),
        (SparseBitmask(10), SparseBitmask(20)),
        (SumOf((low_rank(8), SparseBitmask(10))), SumOf((low_rank(16), SparseBitmask(20)))),
    ],
)
def test_ranks_and_numbers_of_kept_elements_may_differ(first: Layout, second: Layout) -> None:
    check_fused_groups(SKELETON, {"q": first, "k": second}, {})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (PackedInteger(4), PackedInteger(3)),
        (PackedInteger(4, 64), PackedInteger(4, 128)),
        (PackedInteger(4), None),
        (low_rank(8), SparseBitmask(10)),
        (SumOf((low_rank(8), PackedInteger(4))), SumOf((low_rank(8), PackedInteger(3)))),
    ],
)
def test_anything_else_may_not(first: Layout, second: Layout | None) -> None:
    layouts = {"q": first, **({} if second is None else {"k": second})}
    with pytest.raises(UserError, match=r"q \(.*\) and k \(.*\) are run as one weight.*allow_split_groups"):
        check_fused_groups(SKELETON, layouts, {})


def test_what_gains_nothing_by_it_is_left_out() -> None:
    check_fused_groups(SKELETON, {"q": PackedInteger(4)}, {"k": "would be larger"})
