"""The NF4 grid against its sixteen values, tried one by one."""

from __future__ import annotations

import pytest
import torch
from compress_kernels.layouts.nf4 import NF4_VALUES
from torch import Tensor

from compress.score.metric import Kron
from compress.structures.grids.nf4 import BlockScales, NF4Grid

TABLE = torch.tensor(NF4_VALUES, dtype=torch.float64)
GRID = NF4Grid(32)


def weight_of(rows: int = 5, columns: int = 96) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def nearest(weight: Tensor, scale: Tensor, group: int) -> Tensor:
    """The nearest allowed value of every element, float64."""
    wide = scale.double().repeat_interleave(group, 1).unsqueeze(-1)
    values = TABLE * wide
    place = (values - weight.double().unsqueeze(-1)).abs().argmin(-1, keepdim=True)
    return values.gather(-1, place).squeeze(-1)


def test_the_scale_is_the_largest_value_of_a_block() -> None:
    weight = weight_of()
    weight[0, :32] = 0
    scale = NF4Grid(32).fit(weight, Kron()).scale
    assert torch.equal(scale[1:], weight.view(5, 3, 32).abs().amax(-1)[1:])
    assert float(scale[0, 0]) == 1.0  # a block of zeros stays one


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_projection_and_columns_take_the_nearest_value(factor: float) -> None:
    grid, weight = NF4Grid(32), weight_of()
    parameters = BlockScales(factor * grid.fit(weight, Kron()).scale)
    expected = nearest(weight, parameters.scale, 32)
    torch.testing.assert_close(grid.project(weight, parameters).double(), expected, rtol=0, atol=1e-6)
    rounder = grid.column_rounder(parameters, (5, 96))
    columns = torch.stack([rounder(weight[:, j], j) for j in range(96)], 1)
    torch.testing.assert_close(columns.double(), expected, rtol=0, atol=1e-6)


def test_rescaling_keeps_the_codes_and_clipping_keeps_the_table() -> None:
    grid, weight = NF4Grid(32), weight_of()
    parameters = grid.fit(weight, Kron())
    theta = grid.project(weight, parameters)
    changed, again = grid.rescale(theta, parameters, 0.7 * parameters.scale)
    assert torch.equal(grid.codes(changed, again), grid.codes(theta, parameters))
    torch.testing.assert_close(changed, 0.7 * theta)
    whole, half = grid.clipped(parameters, (1.0, 0.5))
    torch.testing.assert_close(half.scale, 0.5 * whole.scale)
    picked = grid.picked((whole, half), torch.tensor([0, 1, 0, 1, 0]))
    assert torch.equal(picked.scale[1::2], half.scale[1::2])
    assert torch.equal(picked.scale[::2], whole.scale[::2])


def test_encoding_is_exact() -> None:
    grid, weight = NF4Grid(32, torch.float32), weight_of()
    parameters = grid.fit(weight, Kron())
    theta = grid.project(weight, parameters)
    assert torch.equal(grid.encode(theta, parameters).dense(torch.float32), theta)


def test_columns_and_elements_round_as_the_projection() -> None:
    weight = weight_of(6, 64)
    parameters = GRID.fit(weight, Kron())
    projected = GRID.project(weight, parameters)
    column = GRID.column_rounder(parameters, (6, 64))
    element = GRID.element_rounder(parameters, (6, 64)).arranged(lambda matrix: matrix.T).slices()
    for j in range(64):
        assert torch.equal(column(weight[:, j], j), projected[:, j])
        torch.testing.assert_close(element(weight[:, j], j), projected[:, j])


def test_values_undo_positions() -> None:
    weight = weight_of(6, 64)
    parameters = GRID.fit(weight, Kron())
    position = GRID.position(weight, parameters)
    torch.testing.assert_close(GRID.values(position, parameters), weight, rtol=0, atol=1e-5)
    codes = GRID.codes(weight, parameters)
    assert torch.equal(GRID.values(codes, parameters), GRID.project(weight, parameters))
    assert float((position - codes).abs().max()) <= 0.5 + 1e-5
    assert GRID.top == 15


def test_values_are_differentiable_in_codes_and_factor() -> None:
    weight = weight_of(6, 64)
    parameters = GRID.fit(weight, Kron())
    codes = GRID.codes(weight, parameters).double().requires_grad_()
    factor = torch.ones(6, 2, requires_grad=True)
    GRID.values(codes, parameters, factor).sum().backward()
    steps = (TABLE[1:] - TABLE[:-1]).float()[codes.detach().long().clamp_max(14)]
    scale = parameters.scale.repeat_interleave(32, 1)
    torch.testing.assert_close(codes.grad, (steps * scale).double())
    torch.testing.assert_close(factor.grad, GRID.project(weight, parameters).view(6, 2, 32).sum(-1))


def test_groups_and_rows_by_themselves() -> None:
    weight = weight_of(6, 64)
    parameters = GRID.fit(weight, Kron())
    grid, group = GRID.group(parameters, 1)
    assert torch.equal(grid.project(weight[:, 32:], group), GRID.project(weight, parameters)[:, 32:])
    halved = GRID.clipped(parameters, [0.5])[0]
    replaced = GRID.with_group(parameters, 1, grid.clipped(group, [0.5])[0])
    assert torch.equal(replaced.scale, torch.stack([parameters.scale[:, 0], halved.scale[:, 1]], 1))
    rows = torch.tensor([True, False, True, False, False, True])
    mixed = GRID.where(rows.unsqueeze(1), halved, parameters)
    assert torch.equal(mixed.scale, GRID.picked([parameters, halved], rows.long()).scale)
    assert torch.equal(GRID.rows_of(mixed, slice(1, 3)).scale, mixed.scale[1:3])
    assert GRID.stacked([parameters, halved], 6).scale.shape == (12, 2)


def test_a_group_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="48"):
        NF4Grid(32).fit(torch.zeros(2, 48), Kron())
