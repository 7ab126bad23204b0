"""Choices along the ranks of a weight: bytes, losses, and what would not be smaller."""

from __future__ import annotations

import pytest
import torch
from compress_kernels.layouts import nbytes

from compress.structures.choices import MULTIPLE, Choice, along_ranks
from compress.structures.low_rank.factors import Factors

SHAPE = (64, 96)


def test_choices_are_plain_data() -> None:
    for choice in (Choice(8), Choice(16, 3, 0.4, "q"), Choice(0, columns=0)):
        assert Choice.from_json(choice.to_json()) == choice
    assert Choice(8).to_json() == {"rank": 8}


def test_every_multiple_that_is_smaller_is_an_option_with_the_tail_as_its_loss() -> None:
    values = torch.linspace(8, 1, 64)
    options = along_ranks(values, Factors(0.5), SHAPE, Choice(0, columns=0))
    ranks = [option.choice.rank for option in options]
    assert ranks == [r for r in range(MULTIPLE, 65, MULTIPLE) if r * sum(SHAPE) < SHAPE[0] * SHAPE[1]]
    for option in options:
        rank = option.choice.rank
        assert option.choice.columns == 0
        assert option.nbytes == nbytes(Factors(rank=rank).layout(SHAPE), SHAPE)
        assert option.loss == pytest.approx(float(values[rank:].double().square().sum()))


def test_a_rank_below_the_multiple_is_offered_where_the_ratio_gives_it() -> None:
    options = along_ranks(torch.ones(12), Factors(0.5), (12, 16), Choice(0))
    assert [option.choice.rank for option in options] == [3, 4, 5, 6]
    assert along_ranks(torch.ones(12), Factors(0.9), (12, 12), Choice(0))[-1].loss > 0
