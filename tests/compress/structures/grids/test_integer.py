"""The integer grid against values that are listed one by one in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from compress.score.metric import Elementwise, Kron, Metric, Side
from compress.structures.grids.integer import _CLIP_RATIOS, GridParameters, IntegerGrid


def weight_of(rows: int = 6, columns: int = 32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    weight[:, ::11] *= 6  # outliers, so that clipping pays
    return weight


def allowed(parameters: GridParameters, bits: int, columns: int) -> Tensor:
    """Every value of every element, float64 ``[out or 1, in, codes]``."""
    codes = torch.arange(2**bits, dtype=torch.float64)
    centred = codes - parameters.zero.double().unsqueeze(-1)
    values = centred * parameters.scale.double().unsqueeze(-1)
    return values.repeat_interleave(columns // values.shape[1], 1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [8, "channel", "tensor"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_projection_takes_the_nearest_allowed_value(bits: int, group: Any, symmetric: bool) -> None:
    weight, grid = weight_of(), IntegerGrid(bits, group, symmetric)
    parameters = grid.fit(weight, Kron())
    values = allowed(parameters, bits, 32).expand(6, 32, -1)
    far = 3 * weight  # also where the grid ends
    for target in (weight, far):
        theta = grid.project(target, parameters).double()
        distance = (values - target.double().unsqueeze(-1)).abs()
        torch.testing.assert_close((theta - target.double()).abs(), distance.amin(-1), rtol=1e-5, atol=1e-6)
        assert bool(((values - theta.unsqueeze(-1)).abs().amin(-1) < 1e-5).all())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_the_range_spans_the_extremes_and_zero(symmetric: bool, packed: bool) -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 8.0], [-1.0, -2.0, -4.0, -8.0], [-4.0, 1.0, 2.0, 12.0]])
    grid = IntegerGrid(4, "channel", symmetric, packed=packed, scale_dtype=torch.float32)
    parameters = grid.fit(weight, Kron())
    if symmetric and packed:
        assert torch.allclose(parameters.scale[:, 0], torch.tensor([-8.0, 8.0, -12.0]) / 8)
        assert parameters.zero.flatten().tolist() == [8, 8, 8]
        largest = weight.abs().argmax(1)
        assert grid.codes(weight, parameters)[range(3), largest].tolist() == [0, 0, 0]
        assert torch.equal(grid.project(weight, parameters)[range(3), largest], weight[range(3), largest])
    elif symmetric:
        assert torch.allclose(parameters.scale[:, 0], torch.tensor([16.0, 16.0, 24.0]) / 15)
        assert parameters.zero.flatten().tolist() == [8, 8, 8]
    else:
        assert torch.allclose(parameters.scale[:, 0], torch.tensor([8.0, 8.0, 16.0]) / 15)
        assert parameters.zero.flatten().tolist() == [0, 15, 4]
    assert torch.equal(grid.project(torch.zeros(3, 4), parameters), torch.zeros(3, 4))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("metric", ["magnitude", "inputs", "elements"])
def test_mse_keeps_the_range_of_least_weighted_error(symmetric: bool, metric: str) -> None:
    weight, generator = weight_of(), torch.Generator().manual_seed(1)
    energy = torch.rand(32, generator=generator) ** 4
    metrics: dict[str, Metric] = {
        "magnitude": Kron(), "inputs": Kron(right=Side(energy)), "elements": Elementwise(energy.expand(6, 32)),
    }  # fmt: skip
    grid = IntegerGrid(3, 8, symmetric, scales="mse", scale_dtype=torch.float32)
    parameters = grid.fit(weight, metrics[metric])
    cost = torch.ones(32, dtype=torch.float64) if metric == "magnitude" else energy.double()
    cost = cost + 1e-6 * cost.mean()

    def error(chosen: GridParameters) -> Tensor:
        delta = grid.project(weight, chosen).double() - weight.double()
        return (delta.square() * cost).view(6, 4, 8).sum(-1)

    whole = IntegerGrid(3, 8, symmetric, scale_dtype=torch.float32)
    trials = []
    for ratio in _CLIP_RATIOS:
        grouped = weight.view(6, 4, 8) * ratio
        low, high = grouped.amin(-1).clamp_max(0), grouped.amax(-1).clamp_min(0)
        trials.append(error(whole._parameters(low, high)))
    least = torch.stack(trials).amin(0)
    torch.testing.assert_close(error(parameters), least, rtol=1e-4, atol=1e-9)
    assert float(error(parameters).sum()) < 0.95 * float(error(whole.fit(weight, Kron())).sum())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [8, "channel", "tensor"])
def test_columns_are_rounded_as_the_whole_weight_is(group: Any, symmetric: bool) -> None:
    weight, grid = weight_of(), IntegerGrid(3, group, symmetric)
    parameters = grid.fit(weight, Kron())
    rounder = grid.column_rounder(parameters, (6, 32))
    for target in (weight, 4 * weight):
        columns = torch.stack([rounder(target[:, j].clone(), j) for j in range(32)], 1)
        torch.testing.assert_close(columns, grid.project(target, parameters), rtol=1e-6, atol=1e-6)


def test_clipped_scales_are_as_they_are_read_back_from_disk() -> None:
    grid = IntegerGrid(4, 8, True, scale_dtype=torch.bfloat16)
    parameters = grid.fit(weight_of(), Kron())
    for trial, ratio in zip(grid.clipped(parameters, (1.0, 0.83)), (1.0, 0.83), strict=True):
        assert torch.equal(trial.scale, trial.scale.bfloat16().float())
        torch.testing.assert_close(trial.scale, ratio * parameters.scale, rtol=2**-8, atol=0)


def test_rescaling_keeps_the_codes() -> None:
    grid, weight = IntegerGrid(4, 8, False), weight_of()
    parameters = grid.fit(weight, Kron())
    theta = grid.project(weight, parameters)
    codes = grid.codes(theta, parameters)
    changed, again = grid.rescale(theta, parameters, 0.7 * parameters.scale)
    assert torch.equal(grid.codes(changed, again), codes)
    torch.testing.assert_close(changed, 0.7 * theta, rtol=2**-7, atol=1e-6)


def test_each_row_picks_its_own_set_of_scales() -> None:
    grid = IntegerGrid(4, 8, False)
    parameters = grid.fit(weight_of(), Kron())
    sets = grid.clipped(parameters, (1.0, 0.5))
    picked = grid.picked(sets, torch.tensor([0, 1, 1, 0, 1, 0]))
    assert torch.equal(picked.scale[[0, 3, 5]], sets[0].scale[[0, 3, 5]])
    assert torch.equal(picked.scale[[1, 2, 4]], sets[1].scale[[1, 2, 4]])
    together = grid.stacked(sets, 6)
    assert torch.equal(together.scale[6:], sets[1].scale)
    assert torch.equal(grid.rows_of(parameters, slice(2, 4)).scale, parameters.scale[2:4])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [8, "channel", "tensor"])
def test_elements_in_any_order_are_rounded_as_the_whole_weight_is(group: Any, symmetric: bool) -> None:
    weight, grid = 2 * weight_of(), IntegerGrid(3, group, symmetric)
    parameters = grid.fit(weight_of(), Kron())
    order = torch.randperm(32, generator=torch.Generator().manual_seed(3))
    rounder = grid.element_rounder(parameters, (6, 32)).arranged(lambda matrix: matrix[:, order].T).slices()
    rows = torch.stack([rounder(weight[:, j].clone(), i) for i, j in enumerate(order.tolist())], 1)
    torch.testing.assert_close(rows, grid.project(weight, parameters)[:, order], rtol=1e-5, atol=1e-6)


def test_values_undo_positions_and_follow_a_factor() -> None:
    weight, grid = weight_of(6, 64), IntegerGrid(4, 16, False)
    parameters = grid.fit(weight, Kron())
    torch.testing.assert_close(
        grid.values(grid.position(weight, parameters), parameters), weight, rtol=0, atol=1e-5
    )
    codes = grid.codes(weight, parameters).float()
    factor = torch.full_like(parameters.scale, 1.1, requires_grad=True)
    values = grid.values(codes, parameters, factor)
    stored = (parameters.scale * 1.1).bfloat16().float()
    expected = (codes - parameters.zero.repeat_interleave(16, 1)) * stored.repeat_interleave(16, 1)
    torch.testing.assert_close(values.detach(), expected)
    values.sum().backward()
    slope = (codes - parameters.zero.repeat_interleave(16, 1)) * parameters.scale.repeat_interleave(16, 1)
    torch.testing.assert_close(factor.grad, slope.view(6, 4, 16).sum(-1))


@pytest.mark.parametrize("group", [16, "channel"])
def test_groups_and_rows_by_themselves(group: Any) -> None:
    weight, grid = weight_of(6, 64), IntegerGrid(3, group, False)
    parameters = grid.fit(weight, Kron())
    groups = parameters.scale.shape[1]
    width, last = 64 // groups, groups - 1
    alone, own = grid.group(parameters, last)
    columns = slice(last * width, 64)
    assert torch.equal(alone.project(weight[:, columns], own), grid.project(weight, parameters)[:, columns])
    shifted = alone.with_zeros(own, (own.zero + 1).clamp(0, grid.top).float())
    assert shifted.zero.dtype == torch.int32
    replaced = grid.with_group(parameters, last, shifted)
    assert torch.equal(replaced.zero[:, last:], shifted.zero)
    assert torch.equal(replaced.zero[:, :last], parameters.zero[:, :last])
    halved = grid.clipped(parameters, [0.5])[0]
    rows = torch.tensor([True, False, True, False, False, True])
    mixed, picked = (
        grid.where(rows.unsqueeze(1), halved, parameters),
        grid.picked([parameters, halved], rows.long()),
    )
    assert torch.equal(mixed.scale, picked.scale)
    assert torch.equal(mixed.zero, picked.zero)
    assert torch.equal(grid.rows_of(mixed, slice(1, 3)).scale, mixed.scale[1:3])
    both = grid.stacked([parameters, halved], 6)
    assert torch.equal(both.scale, torch.cat([parameters.scale, halved.scale]))


def test_rows_that_share_a_scale_are_picked_together() -> None:
    grid = IntegerGrid(4, "tensor", True)
    several = grid.clipped(grid.fit(weight_of(), Kron()), [1.0, 0.5])
    assert not grid.rows_apart
    assert grid.picked(several, torch.ones(6, dtype=torch.int64)) is several[1]


def test_encoding_is_exact() -> None:
    for symmetric in (True, False):
        grid, weight = IntegerGrid(4, 8, symmetric, scale_dtype=torch.float32), weight_of()
        parameters = grid.fit(weight, Kron())
        theta = grid.project(weight, parameters)
        packed = grid.encode(theta, parameters)
        torch.testing.assert_close(packed.dense(torch.float32), theta, rtol=0, atol=1e-6)


def test_a_group_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="does not divide"):
        IntegerGrid(4, 12).fit(weight_of(), Kron())
