"""Element rounders against brute force over all allowed values, in every arrangement that solvers use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compress.linalg.rounding import EvenlySpaced, ScaledTable
from compress.linalg.value_table import ValueTable

GENERATOR = torch.Generator().manual_seed(0)
SCALE = torch.rand(6, 8, generator=GENERATOR) + 0.1
LOW = -2 * torch.rand(6, 8, generator=GENERATOR)
VALUES = 3 * torch.randn(6, 8, generator=GENERATOR)
TABLE = torch.tensor([-1.0, -0.2, 0.0, 0.9])
ROUNDERS: dict[str, tuple[Any, Tensor]] = {
    "even": (EvenlySpaced(LOW, SCALE, 5), torch.stack([LOW + code * SCALE for code in range(6)], -1)),
    "table": (ScaledTable(SCALE, ValueTable(TABLE)), SCALE.unsqueeze(-1) * TABLE),
}
ORDER = torch.randperm(6, generator=GENERATOR).unsqueeze(1), torch.randperm(8, generator=GENERATOR)
MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda matrix: matrix,
    "permuted": lambda matrix: matrix[ORDER],
    "transposed": lambda matrix: matrix.T,
    "tiles": lambda matrix: torch.stack([matrix[:3].T, matrix[3:].T], 1),
}


@pytest.mark.parametrize("kind", ROUNDERS)
@pytest.mark.parametrize("move", MOVES)
def test_every_arrangement_rounds_to_the_nearest(kind: str, move: str) -> None:
    rounder, levels = ROUNDERS[kind]
    arranged = MOVES[move]
    values = arranged(VALUES)
    every = torch.stack([arranged(level) for level in levels.unbind(-1)], -1)
    expected = every.gather(-1, (values.unsqueeze(-1) - every).abs().argmin(-1, keepdim=True)).squeeze(-1)
    nearest = rounder.arranged(arranged).slices()
    for i in range(len(values)):
        torch.testing.assert_close(nearest(values[i], i), expected[i])


@pytest.mark.parametrize("kind", ROUNDERS)
def test_zeros_allow_zero_alone(kind: str) -> None:
    rounder, _ = ROUNDERS[kind]
    padded = rounder.arranged(lambda matrix: F.pad(matrix, (0, 2, 0, 1))).slices()
    assert torch.equal(padded(torch.ones(10), 6), torch.zeros(10))
    assert torch.equal(padded(torch.full((10,), 0.3), 0)[8:], torch.zeros(2))
    mask = torch.arange(48).view(6, 8) % 2 == 0
    masked = rounder.arranged(lambda matrix: matrix * mask).slices()
    assert not bool(masked(torch.ones(8), 3)[~mask[3]].any())


@pytest.mark.parametrize("kind", ROUNDERS)
def test_where_zero_alone_is_allowed_zero_stays_zero(kind: str) -> None:
    padded = ROUNDERS[kind][0].arranged(lambda matrix: F.pad(matrix, (0, 2))).slices()
    assert torch.equal(padded(torch.zeros(10), 2)[8:], torch.zeros(2))
