"""Two-sided rounding and descent by tiles, against float64 loops over single elements."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from compress.linalg.cholesky import inverse_root
from compress.linalg.rounding import EvenlySpaced, ScaledTable
from compress.linalg.two_sided import Tiling, descend_both, round_both
from compress.linalg.value_table import ValueTable
from compress.score.metric import Kron, Side

TABLE = torch.tensor([-1.0, -0.6, -0.1, 0.0, 0.25, 0.8])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(size: int, seed: int) -> Tensor:
    inputs = drawn(6 * size, size, seed=seed) @ (
        torch.eye(size) + 0.5 * drawn(size, size, seed=seed + 1) / size**0.5
    )
    return inputs.T @ inputs / len(inputs)


def rounder_of(kind: str, weight: Tensor) -> tuple[Any, Tensor]:
    """A rounder, and all allowed values ``[out, in, count]``; scales differ from row to row."""
    scale = weight.abs().amax(1, keepdim=True).expand_as(weight).contiguous()
    if kind == "table":
        return ScaledTable(scale, ValueTable(TABLE)), scale.unsqueeze(-1) * TABLE
    low, step = -scale, 2 * scale / 7
    return EvenlySpaced(low, step, 7), torch.stack([low + code * step for code in range(8)], -1)


def feedback(matrix: Tensor) -> Tensor:
    """The unit upper ``M`` in float64 by which what is still free makes up best for what is settled."""
    root = torch.linalg.cholesky(torch.linalg.inv(matrix.double())).T
    return torch.linalg.inv(root / root.diagonal().unsqueeze(1))


def slow_round(target: Tensor, levels: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Element by element to the nearest of ``levels`` ``[out, in, count]``, with the errors so far of rows above, of columns
    to the left and of both."""
    above, before = feedback(left), feedback(right)
    values, errors = torch.zeros_like(target).double(), torch.zeros_like(target).double()
    for i in range(target.shape[0]):
        for j in range(target.shape[1]):
            down, across = above[:i, i], before[:j, j]
            aim = (
                target[i, j] + down @ errors[:i, j] + errors[i, :j] @ across + down @ errors[:i, :j] @ across
            )
            values[i, j] = levels[i, j][(aim - levels[i, j]).abs().argmin()]
            errors[i, j] = target[i, j] - values[i, j]
    return values


@pytest.mark.parametrize("columns", [5, 16, 128])
@pytest.mark.parametrize("kind", ["even", "table"])
def test_tiles_of_one_row_are_the_papers_rounding(columns: int, kind: str) -> None:
    weight, left, right = drawn(7, 32), correlated(7, 1), correlated(32, 3)
    rounder, levels = rounder_of(kind, weight)
    roots = [inverse_root(Side(m), m, 0.0, descending=False).root for m in (left, right)]
    found = round_both(weight, rounder, *roots, 1, columns)
    reference = slow_round(weight, levels.double(), left, right)
    assert torch.allclose(found.double(), reference, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("kind", ["even", "table"])
def test_descent_lowers_the_loss_and_stays_on_the_grid(rows: int, kind: str) -> None:
    weight, left, right = drawn(21, 48), correlated(21, 1), correlated(48, 3)
    metric = Kron(Side(left), Side(right))
    rounder, levels = rounder_of(kind, weight)
    nearest = (weight.unsqueeze(-1) - levels).abs().argmin(-1, keepdim=True)
    theta = levels.gather(-1, nearest).squeeze(-1)
    losses = [metric.loss(weight - theta)]
    for _ in range(3):
        theta = descend_both(weight, theta, rounder, left, right, rows, 16)
        losses.append(metric.loss(weight - theta))
        assert float((theta.unsqueeze(-1) - levels).abs().amin(-1).max()) < 1e-5
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


def test_descent_of_one_element_is_exact() -> None:
    """Where only one element can move, it goes where the loss is least."""
    weight, left, right = drawn(5, 16), correlated(5, 1), correlated(16, 3)
    metric = Kron(Side(left), Side(right))
    rounder, levels = rounder_of("even", weight)
    start = levels.gather(-1, (weight.unsqueeze(-1) - levels).abs().argmin(-1, keepdim=True)).squeeze(-1)
    for i, j in ((0, 0), (3, 7), (4, 15)):
        low, step = start.clone(), torch.zeros_like(weight)
        low[i, j], step[i, j] = rounder.low[i, j], rounder.step[i, j]
        found = descend_both(weight, start, EvenlySpaced(low, step, 7), left, right, 1, 4)
        trials = []
        for value in levels[i, j]:
            trial = start.clone()
            trial[i, j] = value
            trials.append(metric.loss(weight - trial))
        assert metric.loss(weight - found) == pytest.approx(min(trials), rel=1e-5)


@pytest.mark.parametrize(("out", "size", "rows", "columns"), [(7, 10, 3, 4), (4, 4, 4, 4), (1, 9, 2, 5)])
def test_the_tiles_of_all_diagonals_cover_each_element_once(
    out: int, size: int, rows: int, columns: int
) -> None:
    tiling = Tiling(out, size, rows, columns)
    count = tiling.pad(torch.zeros(out, size))
    done: set[tuple[int, int]] = set()
    for _, places in tiling.waves():
        for r, c in places:
            above = [(i, j) for i in range(0, r.start, rows) for j in range(0, c.start + 1, columns)]
            assert all(place in done for place in above), "a tile waits for those above it and to its left"
            count[r, c] += 1
        done |= {(r.start, c.start) for r, c in places}
    assert bool((count == 1).all())
