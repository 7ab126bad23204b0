"""Masked grids: points of a grid under a mask."""

from __future__ import annotations

import pytest
import torch

from compress.score.metric import Kron, Side
from compress.structures.base import SparsityPattern
from compress.structures.grids.integer import IntegerGrid
from compress.structures.sparse.masked_grid import MaskedGrid
from compress.structures.sparse.patterns import NM, Blocks, Unstructured

PATTERNS = [Unstructured(0.5), Unstructured(0.33, "layer"), NM(2, 4), NM(4, 8), Blocks(0.5, 4, 8)]
SHAPE = (12, 64)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scales", ["minmax", "mse"])
def test_masked_grids_round_trip(pattern: SparsityPattern, symmetric: bool, scales: str) -> None:
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    structure = MaskedGrid(pattern, IntegerGrid(4, 16, symmetric, scales))  # type: ignore[arg-type]
    parameters = structure.fit(weight, Kron(right=Side(torch.rand(64))))
    theta = structure.project(weight, parameters)
    assert torch.equal(structure.encode(theta, parameters).dense(torch.float32), theta)
    assert not bool(theta[~parameters.mask].any())
    # A dense copy lies on the grid too: zero is one of its points.
    assert torch.equal(structure.grid.project(theta, parameters.grid), theta)
    rounder = structure.column_rounder(parameters, SHAPE)
    columns = torch.stack([rounder(weight[:, j], j) for j in range(SHAPE[1])], 1)
    assert torch.allclose(columns, theta, atol=1e-6)


def test_elements_in_any_order_round_as_the_projection() -> None:
    structure = MaskedGrid(NM(2, 4), IntegerGrid(3, 16, False))
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    parameters = structure.fit(weight, Kron())
    order = torch.randperm(SHAPE[1], generator=torch.Generator().manual_seed(4))
    rounder = (
        structure.element_rounder(parameters, SHAPE).arranged(lambda matrix: matrix[:, order].T).slices()
    )
    rows = torch.stack([rounder(weight[:, j], i) for i, j in enumerate(order.tolist())], 1)
    torch.testing.assert_close(rows, structure.project(weight, parameters)[:, order], rtol=1e-5, atol=1e-6)


def test_rescaling_and_choosing_scales_keep_the_mask() -> None:
    structure = MaskedGrid(Unstructured(0.5), IntegerGrid(4, 16, False))
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    parameters = structure.fit(weight, Kron())
    theta, changed = structure.rescale(
        structure.project(weight, parameters), parameters, 1.5 * structure.scales_of(parameters)
    )
    assert torch.equal(changed.mask, parameters.mask)
    assert not bool(theta[~parameters.mask].any())
    rows = (torch.arange(12) % 2 == 0).unsqueeze(1)
    mixed = structure.where(rows, changed, parameters)
    assert torch.equal(structure.scales_of(mixed)[::2], structure.scales_of(changed)[::2])
    assert torch.equal(structure.scales_of(mixed)[1::2], structure.scales_of(parameters)[1::2])


def test_a_layout_without_codes_is_refused() -> None:
    with pytest.raises(ValueError, match="pruned weights cannot be stored"):
        MaskedGrid(NM(2, 4), IntegerGrid(8, "channel", packed=False)).layout(SHAPE)


def test_the_grid_is_that_of_what_the_mask_keeps() -> None:
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
    mask = torch.rand(SHAPE, generator=torch.Generator().manual_seed(6)) < 0.3
    grid = IntegerGrid(4, 16)
    parameters = MaskedGrid(Unstructured(0.5), grid).under(weight, mask, Kron())
    assert torch.equal(parameters.grid.scale, grid.fit(weight * mask, Kron()).scale)
    assert not torch.equal(parameters.grid.scale, grid.fit(weight, Kron()).scale)
