"""The NF4 grid against its sixteen values, tried one by one."""

from __future__ import annotations

import pytest
import torch
from compress_kernels.layouts.nf4 import NF4_VALUES
from torch import Tensor

from compress.score.metric import Kron
from compress.structures.grids.nf4 import BlockScales, NF4Grid

TABLE = torch.tensor(NF4_VALUES, dtype=torch.float64)


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
