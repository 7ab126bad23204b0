"""GPTQ's recursion: against its equation in float64, and the C++ kernel against the loop over columns."""

from __future__ import annotations

import pytest
import torch
from compress_kernels import native
from torch import Tensor

from compress.linalg import column_recursion as module
from compress.linalg.column_recursion import round_columns
from compress.linalg.rounding import EvenColumns

COLUMNS, ROWS, WIDTH = 20, 70, 8


def drawn() -> tuple[Tensor, Tensor, EvenColumns, list[int]]:
    """Columns in another order than the weight's, a factor, a grid of groups and the order."""
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(COLUMNS, ROWS, generator=generator)
    root = torch.eye(COLUMNS) * 2 + 0.3 * torch.randn(COLUMNS, COLUMNS, generator=generator).triu(1)
    scale = torch.rand(-(-COLUMNS // WIDTH), ROWS, generator=generator) * 0.2 + 0.1
    places = torch.randperm(COLUMNS, generator=generator).tolist()
    return columns, root, EvenColumns(scale, -4 * scale, 3 * scale, WIDTH), places


def by_equation(
    columns: Tensor,
    root: Tensor,
    grid: EvenColumns,
    places: list[int],
    first: Tensor | None,
    drift: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Values and losses, the errors pushed one column at a time, in float64."""
    work, values = columns.double(), torch.zeros(columns.shape, dtype=torch.float64)
    losses = torch.zeros(columns.shape[1], dtype=torch.float64)
    for i, place in enumerate(places):
        scale, low, high = (side[place // grid.width].double() for side in (grid.scale, grid.low, grid.high))
        from_ = work[i] if i or first is None else first.double()
        values[i] = ((from_ / scale).round() * scale).clamp(low, high)
        error = (work[i] - values[i]) / root[i, i]
        losses += error**2
        for k in range(i + 1, len(places)):
            work[k] -= error * root[i, k]
            if drift is not None:
                work[k] += work[i] * drift[i, k]
    return values, losses


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("block", [3, 7, 128])
@pytest.mark.parametrize("option", ["", "first", "drift"])
def test_the_equation(option: str, block: int, kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernel and not native.load().loaded:
        pytest.skip("no compiler")
    monkeypatch.setattr(module, "_has_kernel", lambda part: kernel)
    columns, root, grid, places = drawn()
    first = torch.linspace(-1, 1, ROWS) if option == "first" else None
    drift = 0.05 * torch.randn(COLUMNS, COLUMNS).triu(1) if option == "drift" else None
    wanted, costs = by_equation(columns, root, grid, places, first, drift)
    losses = round_columns(columns, root, grid, places, block=block, first=first, drift=drift)
    # A rounding error may turn a code; then all that follows in its row differs.
    same = ((columns - wanted).abs() < 1e-4).all(0)
    assert float(same.float().mean()) > 0.9
    torch.testing.assert_close(losses[same].double(), costs[same], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("isa", native.available())
def test_every_instruction_set(isa: str) -> None:
    columns, root, grid, places = drawn()
    wanted, _ = by_equation(columns, root, grid, places, None, None)
    with native.using(isa):
        round_columns(columns, root, grid, places)
    assert float(((columns - wanted).abs() < 1e-4).all(0).float().mean()) > 0.9


@pytest.mark.skipif(not native.load().loaded, reason="no compiler")
def test_threads_change_no_bit() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            columns, root, grid, places = drawn()
            round_columns(columns, root, grid, places)
            found.append(columns)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_any_rounder_is_asked_column_by_column_in_the_order_given() -> None:
    columns, root, _, places = drawn()
    asked: list[int] = []

    def rounder(values: Tensor, column: int) -> Tensor:
        asked.append(column)
        return values.round()

    round_columns(columns, root, rounder, places, block=6)
    assert asked == places
    assert torch.equal(columns, columns.round())


def test_the_kernel_refuses_what_it_would_read_beyond() -> None:
    if not native.load().loaded:
        pytest.skip("no compiler")
    op = torch.ops.compress_kernels.native_round_columns
    block, root, side = torch.zeros(4, 6), torch.eye(4), torch.ones(1, 6)
    with pytest.raises(ValueError, match="no group 1"):
        op(block, root, side, side, side, [0, 0, 0, 1], None, None)
    with pytest.raises(ValueError, match="group of each column"):
        op(block, root, side, side, side, [0], None, None)
    with pytest.raises(ValueError, match="float32"):
        op(block, root[:3], side, side, side, [0] * 4, None, None)


@pytest.mark.parametrize("kernel", [True, False])
def test_columns_as_they_were_rounded(kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernel and not native.load().loaded:
        pytest.skip("no compiler")
    monkeypatch.setattr(module, "_has_kernel", lambda part: kernel)
    columns, root, grid, places = drawn()
    before, pushed = columns.clone(), torch.empty_like(columns)
    losses = round_columns(columns, root, grid, places, block=7, pushed=pushed)
    work, errors = before.double(), torch.zeros_like(before, dtype=torch.float64)
    for i in range(len(places)):
        torch.testing.assert_close(pushed[i].double(), work[i], rtol=1e-4, atol=1e-5)
        errors[i] = (work[i] - columns[i].double()) / root[i, i]
        work[i + 1 :] -= root[i, i + 1 :, None] * errors[i]
    torch.testing.assert_close(losses.double(), errors.square().sum(0), rtol=1e-4, atol=1e-5)
