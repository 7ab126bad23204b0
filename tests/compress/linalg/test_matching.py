"""The matching of rows beside all permutations of them."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from compress.errors import UserError
from compress.linalg.matching import matched


def test_no_other_order_is_better() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(5, 3, generator=generator) for _ in range(2))
    order = matched(first, second)
    best = max(permutations(range(5)), key=lambda one: float((first * second[list(one)]).sum()))
    assert order.tolist() == list(best)


def test_rows_in_another_order_are_found() -> None:
    rows = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    assert torch.equal(rows[shuffled][matched(rows, rows[shuffled])], rows)


def test_without_scipy_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.linalg.matching.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'compress-llm\[merge\]'"):
        matched(torch.eye(2), torch.eye(2))
