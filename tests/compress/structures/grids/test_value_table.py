"""Grids of tables against their values, tried one by one."""

from __future__ import annotations

import pytest
import torch
from compress_kernels.value_types import table_values
from torch import Tensor

from compress.score.metric import Kron, Side
from compress.structures.grids.value_table import RATIOS, TableGrid

GRIDS = [TableGrid(32, "shift", 3), TableGrid(32, "shift", 4), TableGrid(32, "rf8", 8, torch.float16)]


def weight_of(rows: int = 5, columns: int = 96) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def nearest(grid: TableGrid, weight: Tensor, scale: Tensor) -> Tensor:
    """The nearest allowed value of every element, float64."""
    values = torch.tensor(table_values(grid.kind, grid.bits), dtype=torch.float64)
    wide = values * scale.double().repeat_interleave(grid.group_size, 1).unsqueeze(-1)
    place = (wide - weight.double().unsqueeze(-1)).abs().argmin(-1, keepdim=True)
    return wide.gather(-1, place).squeeze(-1)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.kind}{grid.bits}")
def test_projection_and_columns_take_the_nearest_value(grid: TableGrid) -> None:
    weight = weight_of()
    parameters = grid.fit(weight, Kron())
    expected = nearest(grid, weight, parameters.scale)
    torch.testing.assert_close(grid.project(weight, parameters).double(), expected, rtol=0, atol=1e-6)
    rounder = grid.column_rounder(parameters, (5, 96))
    columns = torch.stack([rounder(weight[:, j], j) for j in range(96)], 1)
    torch.testing.assert_close(columns.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.kind}{grid.bits}")
def test_scales_are_the_best_of_those_tried_and_can_be_stored(grid: TableGrid) -> None:
    weight = weight_of()
    weight[0, :32] = 0
    gram = torch.diag(torch.linspace(0.1, 4, 96))
    scale = grid.fit(weight, Kron(right=Side(gram))).scale
    assert torch.equal(scale, scale.to(grid.dtype).float())
    costs = gram.diagonal().view(3, 32)
    largest = weight.view(5, 3, 32).abs().amax(-1)
    for ratio in RATIOS:
        other = grid.stored(torch.where(largest > 0, largest, torch.ones(())) * ratio)
        losses = [
            ((nearest(grid, weight, one) - weight).square().view(5, 3, 32) * costs).sum(-1)
            for one in (scale, other)
        ]
        assert bool((losses[0] <= losses[1] + 1e-9).all())


def test_a_weight_of_zeros_has_no_zero_to_take() -> None:
    grid = TableGrid(32, "shift", 3)
    weight = torch.zeros(2, 32)
    theta = grid.project(weight, grid.fit(weight, Kron()))
    assert bool((theta != 0).all())
    assert float(theta.abs().max()) <= 0.125


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.kind}{grid.bits}")
def test_packing_keeps_the_values(grid: TableGrid) -> None:
    weight = weight_of()
    parameters = grid.fit(weight, Kron())
    theta = grid.project(weight, parameters)
    assert torch.equal(grid.encode(theta, parameters).dense(torch.float32), theta)
