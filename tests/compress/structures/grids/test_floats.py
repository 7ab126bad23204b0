"""Grids of small floats against all their values, tried one by one, and against compressed-tensors' own rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compress_kernels.layouts.floats import by_row, rising_values
from compressed_tensors.quantization import preset_name_to_scheme
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from torch import Tensor

from compress.score.metric import Kron, Side
from compress.structures.grids.floats import FloatGrid, FloatParameters

GRIDS = {
    "channel": FloatGrid("fp8", "channel"),
    "tensor": FloatGrid("fp8", "tensor"),
    "block": FloatGrid("fp8", "block"),
    "mxfp8": FloatGrid("mxfp8", 32),
    "mxfp4": FloatGrid("mxfp4", 32),
    "nvfp4": FloatGrid("nvfp4", 16),
}
SCHEMES = {
    "channel": "FP8_DYNAMIC",
    "tensor": "FP8",
    "block": "FP8_BLOCK",
    "mxfp8": "MXFP8A16",
    "mxfp4": "MXFP4A16",
    "nvfp4": "NVFP4A16",
}
SHAPE = (150, 256)


@pytest.fixture(params=GRIDS)
def case(request: Any) -> tuple[str, FloatGrid, Tensor, FloatParameters]:
    grid = GRIDS[request.param]
    weight = 0.02 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    weight[3] *= 20
    return request.param, grid, weight, grid.fit(weight, Kron())


def wide(grid: FloatGrid, parameters: FloatParameters) -> Tensor:
    """The scale of each element, fp32 ``[out, in]``."""
    scale = by_row(parameters.scale, grid.group_size, SHAPE[0])
    return scale.repeat_interleave(SHAPE[1] // scale.shape[1], 1)


def test_projection_takes_the_nearest_value(case: tuple[str, FloatGrid, Tensor, FloatParameters]) -> None:
    _, grid, weight, parameters = case
    values = torch.tensor(rising_values(grid.kind.element), dtype=torch.float64)
    scale = wide(grid, parameters)
    for row in (0, 3, 149):
        allowed = values * scale[row].double().unsqueeze(-1)
        place = (allowed - weight[row].double().unsqueeze(-1)).abs().argmin(-1, keepdim=True)
        nearest = allowed.gather(-1, place).squeeze(-1)
        found = grid.project(weight, parameters)[row].double()
        torch.testing.assert_close(found, nearest, rtol=1e-6, atol=1e-12)


def test_the_library_rounds_to_the_same_values(case: tuple[str, FloatGrid, Tensor, FloatParameters]) -> None:
    """Its rounding under our scales is our projection, bit for bit."""
    name, grid, weight, parameters = case
    scheme = preset_name_to_scheme(SCHEMES[name], ["Linear"])
    scale = parameters.stored.reshape(1) if name == "tensor" else parameters.stored
    theirs = fake_quantize(weight, scale, None, scheme.weights, parameters.outer)
    assert torch.equal(theirs, grid.project(weight, parameters))


def test_encoding_is_exact(case: tuple[str, FloatGrid, Tensor, FloatParameters]) -> None:
    _, grid, weight, parameters = case
    theta = grid.project(weight, parameters)
    packed = grid.encode(theta, parameters)
    assert torch.equal(packed.dense(torch.float32), theta)
    assert torch.equal(grid.project(theta, parameters), theta)


def test_columns_and_elements_round_as_the_projection(
    case: tuple[str, FloatGrid, Tensor, FloatParameters],
) -> None:
    _, grid, weight, parameters = case
    projected = grid.project(weight, parameters)
    column = grid.column_rounder(parameters, SHAPE)
    element = grid.element_rounder(parameters, SHAPE).arranged(lambda matrix: matrix.T).slices()
    for j in range(0, SHAPE[1], 17):
        assert torch.equal(column(weight[:, j], j), projected[:, j])
        torch.testing.assert_close(element(weight[:, j], j), projected[:, j])


def test_values_undo_positions(case: tuple[str, FloatGrid, Tensor, FloatParameters]) -> None:
    _, grid, weight, parameters = case
    codes = grid.codes(weight, parameters)
    assert torch.equal(grid.values(codes, parameters), grid.project(weight, parameters))
    assert 0 <= int(codes.min()) <= int(codes.max()) <= grid.top
    position = grid.position(weight, parameters)
    torch.testing.assert_close(grid.values(position, parameters), weight, rtol=1e-4, atol=1e-6)


def test_values_are_differentiable_in_codes_and_factor(
    case: tuple[str, FloatGrid, Tensor, FloatParameters],
) -> None:
    _, grid, weight, parameters = case
    codes = grid.codes(weight, parameters).float().requires_grad_()
    factor = torch.ones_like(grid.scales_of(parameters), requires_grad=True)
    values = grid.values(codes, parameters, factor)
    torch.testing.assert_close(values.detach(), grid.project(weight, parameters))
    values.sum().backward()
    assert bool((codes.grad > 0).all())
    scale = by_row(grid.scales_of(parameters), grid.group_size, SHAPE[0])
    total = float((factor.grad * 1.0).sum())
    assert total == pytest.approx(float(grid.project(weight, parameters).sum()), rel=1e-3, abs=1e-3)
    assert scale.shape[0] == SHAPE[0]


def test_rescaling_keeps_the_codes(case: tuple[str, FloatGrid, Tensor, FloatParameters]) -> None:
    _, grid, weight, parameters = case
    theta = grid.project(weight, parameters)
    changed, again = grid.rescale(theta, parameters, 2 * grid.scales_of(parameters))
    assert torch.equal(grid.codes(changed, again), grid.codes(theta, parameters))
    limit = 448.0 if grid.kind.scale == "e4m3" else torch.inf
    inside = by_row(2 * parameters.stored <= limit, grid.group_size, SHAPE[0])
    inside = inside.repeat_interleave(SHAPE[1] // inside.shape[1], 1)
    torch.testing.assert_close(changed[inside], 2 * theta[inside])


def test_a_search_is_nearer_than_the_largest_value_in_the_metric(
    case: tuple[str, FloatGrid, Tensor, FloatParameters],
) -> None:
    _, grid, weight, _ = case
    inputs = torch.linspace(0.1, 10, SHAPE[1])
    metric = Kron(right=Side(torch.diag(inputs)))
    plain = FloatGrid(grid.type, grid.group_size, scales="minmax")
    losses = [metric.loss(weight - each.project(weight, each.fit(weight, metric))) for each in (grid, plain)]
    assert losses[0] < losses[1]
    again = grid.fit(weight, metric)
    assert torch.equal(again.stored, grid.fit(weight, metric).stored)


def test_groups_and_rows_by_themselves() -> None:
    grid = GRIDS["nvfp4"]
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    parameters = grid.fit(weight, Kron())
    alone, group = grid.group(parameters, 1)
    assert torch.equal(alone.project(weight[:, 16:32], group), grid.project(weight, parameters)[:, 16:32])
    smaller = alone.clipped(group, [0.99])[0]
    assert bool((smaller.stored < group.stored).all())
    replaced = grid.with_group(parameters, 1, smaller)
    assert torch.equal(replaced.stored[:, 1], smaller.stored[:, 0])
    assert torch.equal(replaced.stored[:, 0], parameters.stored[:, 0])
    rows = torch.tensor([True, False, True, False, False, True])
    halved = grid.clipped(parameters, [0.5])[0]
    mixed = grid.where(rows.unsqueeze(1), halved, parameters)
    assert torch.equal(mixed.stored, grid.picked([parameters, halved], rows.long()).stored)
    assert torch.equal(grid.rows_of(mixed, slice(1, 3)).stored, mixed.stored[1:3])
    assert grid.stacked([parameters, halved], 6).stored.shape == (12, 4)


def test_ratios_that_are_stored_alike_are_tried_once() -> None:
    grid = GRIDS["mxfp4"]
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    parameters = grid.fit(weight, Kron())
    assert len(grid.clipped(parameters, [1.0, 0.94, 0.88, 0.82, 0.76])) == 1
    alone, group = grid.group(parameters, 0)
    trials = alone.clipped(group, [0.82, 0.9, 1.0, 1.12])
    assert sorted(float((trial.stored / group.stored)[0, 0]) for trial in trials) == [0.5, 1.0, 2.0]


def test_weights_that_share_a_scale_have_one() -> None:
    """NVFP4's outer scale follows the largest value of all weights that a server runs as one."""
    grid = GRIDS["nvfp4"]
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    small, large = grid.reaching(9.0), grid.reaching(9.0)
    first, second = small.fit(weight, Kron()), large.fit(weight / 5, Kron())
    assert torch.equal(first.outer, second.outer)
    assert float(first.outer) == pytest.approx(256 * 6 / 9.0)
    assert GRIDS["mxfp4"].reaching(9.0) == GRIDS["mxfp4"]


def test_zeros_stay_zeros() -> None:
    for name, grid in GRIDS.items():
        weight = torch.zeros(130, 128)
        parameters = grid.fit(weight, Kron())
        packed = grid.encode(grid.project(weight, parameters), parameters)
        assert not packed.dense(torch.float32).any(), name


def test_a_width_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="groups of 32 do not divide 48 input features, as mxfp4 needs"):
        GRIDS["mxfp4"].fit(torch.zeros(2, 48), Kron())
    with pytest.raises(ValueError, match="blocks of 128 x 128 do not divide 192"):
        GRIDS["block"].layout((2, 192))
