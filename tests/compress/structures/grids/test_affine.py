"""Affine grid: nearest values against brute force in float64, what is stored is what was solved, and better ranges."""

from __future__ import annotations

import pytest
import torch
from compress_kernels.layouts import AffineInteger
from torch import Tensor

from compress.score.metric import Kron, Metric, Side
from compress.structures.grids.affine import AffineGrid
from compress.structures.grids.integer import GridParameters, IntegerGrid

SHAPE = (6, 128)
METRIC: Metric = Kron(right=Side(torch.eye(SHAPE[1])))


def weight(shift: float = 0.02) -> Tensor:
    return 0.05 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) + shift


def nearest(values: Tensor, grid: AffineGrid, parameters: GridParameters) -> Tensor:
    """The nearest of the ``2^bits`` values ``q · s + β`` of each group, by trying them all in float64."""
    scale, bias = parameters.scale.double(), grid.biases(parameters).double()
    levels = torch.arange(grid.top + 1) * scale.unsqueeze(-1) + bias.unsqueeze(-1)
    levels = levels.repeat_interleave(SHAPE[1] // scale.shape[1], 1)
    index = (values.double().unsqueeze(-1) - levels).abs().argmin(-1, keepdim=True)
    return levels.gather(-1, index).squeeze(-1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_the_nearest_value_is_what_is_stored(bits: int, dtype: torch.dtype) -> None:
    grid = AffineGrid(bits, 32, scale_dtype=dtype)
    values = weight()
    parameters = grid.fit(values, METRIC)
    found = grid.project(values, parameters)
    torch.testing.assert_close(found.double(), nearest(values, grid, parameters), rtol=1e-5, atol=1e-7)
    packed = grid.encode(found, parameters)
    assert packed.layout == AffineInteger(bits, 32, dtype)
    assert torch.equal(packed.dense(torch.float32), found)
    assert torch.equal(grid.project(found, parameters), found)


def test_a_range_without_zero_is_spanned_by_itself() -> None:
    """All weights of a group far from zero: whole zero points waste the codes between."""
    values = weight(shift=1.0)
    ours, whole = AffineGrid(4, 64), IntegerGrid(4, 64, symmetric=False)
    errors = [
        float((grid.project(values, grid.fit(values, METRIC)) - values).norm()) for grid in (ours, whole)
    ]
    assert errors[0] < 0.35 * errors[1]


def test_a_searched_range_is_no_worse() -> None:
    values = weight()
    errors = []
    for scales in ("minmax", "mse"):
        grid = AffineGrid(3, 64, scales=scales)  # type: ignore[arg-type]
        errors.append(float((grid.project(values, grid.fit(values, METRIC)) - values).norm()))
    assert errors[1] < 0.97 * errors[0]


def test_a_group_of_one_value_is_that_value() -> None:
    values = torch.full(SHAPE, -0.375)
    grid = AffineGrid(4, 32)
    assert torch.equal(grid.project(values, grid.fit(values, METRIC)), values)


def test_rounders_agree_with_the_projection() -> None:
    grid, values = AffineGrid(4, 32), weight()
    parameters = grid.fit(values, METRIC)
    expected = grid.project(values, parameters)
    by_column = grid.column_rounder(parameters, SHAPE)
    columns = torch.stack([by_column(values[:, j].clone(), j) for j in range(SHAPE[1])], 1)
    assert torch.equal(columns, expected)
    by_slice = grid.element_rounder(parameters, SHAPE).slices()
    assert torch.equal(torch.stack([by_slice(values[i].clone(), i) for i in range(SHAPE[0])]), expected)


def test_values_have_the_gradient_of_scale_and_bias() -> None:
    grid, values = AffineGrid(4, 32), weight()
    parameters = grid.fit(values, METRIC)
    codes = grid.codes(values, parameters).float().requires_grad_()
    factor = torch.ones_like(parameters.scale, requires_grad=True)
    torch.testing.assert_close(grid.values(codes, parameters, factor), grid.project(values, parameters))
    grid.values(codes, parameters, factor).sum().backward()
    torch.testing.assert_close(codes.grad, parameters.scale.repeat_interleave(32, 1))
    ends = grid.project(values, parameters).view(SHAPE[0], -1, 32).sum(-1)
    torch.testing.assert_close(factor.grad, ends, rtol=1e-4, atol=1e-5)


def test_position_counts_codes() -> None:
    grid, values = AffineGrid(4, 32), weight()
    parameters = grid.fit(values, METRIC)
    position = grid.position(values, parameters)
    assert float((position.round().clamp(0, 15) - grid.codes(values, parameters)).abs().max()) <= 1
    assert float((position - grid.codes(values, parameters)).abs().mean()) < 0.35


def test_groups_that_do_not_fit() -> None:
    for group in ("channel", 16, 48):
        with pytest.raises(ValueError, match="32, 64 or 128|does not divide"):
            AffineGrid(4, group).layout(SHAPE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not 7"):
        AffineGrid(7, 32).layout(SHAPE)
