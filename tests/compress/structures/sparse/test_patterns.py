"""Masks: exact counts and patterns, the best choice, column blocks that add up."""

from __future__ import annotations

import itertools

import pytest
import torch
from compress_kernels.layouts import SparseBitmask, SparseNM

from compress.structures.base import SparsityPattern
from compress.structures.sparse.patterns import NM, Blocks, Unstructured, largest

PATTERNS: list[SparsityPattern] = [
    Unstructured(0.5),
    Unstructured(0.7),
    Unstructured(0.5, "layer"),
    Unstructured(0.33, "layer"),
    NM(2, 4),
    NM(4, 8),
    NM(1, 4),
    Blocks(0.5, 4, 8),
    Blocks(0.3, 1, 16),
]
SHAPE = (12, 64)


def importance(shape: tuple[int, int] = SHAPE) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_counts_are_exact_even_where_nothing_matters(pattern: SparsityPattern) -> None:
    for values in (importance(), torch.zeros(SHAPE), torch.ones(SHAPE)):
        assert int(pattern.choose(values).sum()) == pattern.kept(SHAPE)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_column_blocks_keep_as_many_together(pattern: SparsityPattern) -> None:
    width = max(24, pattern.width) // pattern.width * pattern.width
    values = importance()
    parts = [pattern.columns_block(values[:, f : f + width], f, SHAPE) for f in range(0, SHAPE[1], width)]
    assert int(torch.cat(parts, 1).sum()) == pattern.kept(SHAPE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [0, 1, 5, 11, 12])
def test_the_largest_of_each_row(dtype: torch.dtype, count: int) -> None:
    values = torch.randn(40, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    order = values.sort(1, descending=True).indices[:, :count]
    assert torch.equal(largest(values, count), torch.zeros_like(values).bool().scatter_(1, order, True))


def test_as_many_are_chosen_where_values_are_equal_or_no_numbers() -> None:
    values = torch.tensor([[1.0, 1.0, 1.0, 0.0], [2.0, float("nan"), 0.0, 1.0], [3.0, 2.0, 1.0, 0.0]])
    chosen = largest(values, 2)
    assert chosen.sum(1).tolist() == [2, 2, 2]
    assert chosen[2].tolist() == [True, True, False, False]
    assert not chosen[0, 3]


def test_rows_keep_the_same_and_layers_do_not() -> None:
    values = importance() * torch.arange(1, 13).unsqueeze(1)
    assert Unstructured(0.5).choose(values).sum(1).tolist() == [32] * 12
    assert len(set(Unstructured(0.5, "layer").choose(values).sum(1).tolist())) > 1


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8)])
def test_the_best_of_all_patterns_is_chosen(n: int, m: int) -> None:
    values = importance((3, 2 * m))
    mask = NM(n, m).choose(values).view(-1, m)
    for row, kept in zip(values.view(-1, m), mask, strict=True):
        best = max(sum(float(row[j]) for j in places) for places in itertools.combinations(range(m), n))
        assert float(row[kept].sum()) == pytest.approx(best)


def test_blocks_are_whole() -> None:
    mask = Blocks(0.5, 4, 8).choose(importance())
    shares = mask.view(3, 4, 8, 8).float().mean((1, 3))
    assert set(shares.flatten().tolist()) == {0.0, 1.0}


def test_layouts_take_the_smaller_form() -> None:
    assert isinstance(NM(2, 4).layout(SHAPE, torch.bfloat16), SparseNM)
    assert isinstance(NM(1, 4).layout(SHAPE, torch.bfloat16), SparseNM)
    assert isinstance(NM(4, 8).layout(SHAPE, torch.bfloat16), SparseBitmask)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Unstructured(1.0), "share"),
        (lambda: NM(4, 4), "not 4:4"),
        (lambda: NM(2, 4).kept((4, 6)), "does not divide"),
        (lambda: Blocks(0.5, 4, 4).kept((6, 8)), "do not divide"),
    ],
)
def test_what_does_not_fit_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("sparsity", "kept"), [(0.29, 71), (0.57, 43), (0.58, 42), (0.5, 50), (0.999, 1), (0.0, 100)]
)
def test_a_share_of_whole_elements_is_not_rounded_by_its_last_bit(sparsity: float, kept: int) -> None:
    assert Unstructured(sparsity).kept((1, 100)) == kept
