"""Joint search of scales and zero points, beside an exhaustive search in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from compress_kernels import native
from torch import Tensor

from compress.linalg import scale_search as module
from compress.recipe.grids import Quantize
from compress.score.metric import Kron, Side
from compress.structures.grids.affine import AffineGrid
from compress.structures.grids.integer import IntegerGrid

GROUP = 32


def weights(kind: str) -> tuple[Tensor, Tensor]:
    """A weight ``[out, in]`` and the importance of its columns."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(6, 2 * GROUP, generator=generator)
    importance = torch.rand(2 * GROUP, generator=generator) + 0.05
    if kind == "outlier":
        weight[:, 3] *= 8
    if kind == "shifted":
        weight = weight.abs() + 2
    if kind == "important":
        importance[5] = 50
    return weight, importance


def lost(grid: IntegerGrid, weight: Tensor, importance: Tensor) -> Tensor:
    """Weighted squared errors of the groups under the grid's fitted parameters, fp64 ``[out, groups]``."""
    parameters = grid.fit(weight, Kron(right=Side(importance)))
    delta = (weight - grid.project(weight, parameters)).double()
    return (delta.square() * importance).view(len(weight), -1, GROUP).sum(-1)


def exhaustive(grid: IntegerGrid, weight: Tensor, importance: Tensor) -> Tensor:
    """The same under the best pair of a fine mesh of scales and zero points."""
    grouped = weight.double().view(len(weight), -1, GROUP)
    counted = importance.double().view(-1, GROUP)
    whole = grouped.amax(-1).clamp_min(0) - grouped.amin(-1).clamp_max(0)
    least = torch.full(whole.shape, float("inf"), dtype=torch.float64)
    fractional = isinstance(grid, AffineGrid)
    reach = grouped.abs().amax() / whole.amin() * grid.top * 2 if fractional else grid.top
    zeros = torch.arange(-float(reach), float(reach) + 1, 0.25) if fractional else torch.arange(grid.top + 1)
    for ratio, zero in itertools.product(torch.linspace(0.1, 1.1, 41).tolist(), zeros.tolist()):
        scale = (whole * ratio / grid.top).to(grid.scale_dtype).double().unsqueeze(-1)
        codes = (grouped / scale + zero).round().clamp(0, grid.top)
        least = torch.minimum(least, (((codes - zero) * scale - grouped).square() * counted).sum(-1))
    return least


@pytest.mark.parametrize("kind", ["plain", "outlier", "shifted", "important"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_is_nearly_as_good_as_an_exhaustive_search(kind: str, bits: int) -> None:
    weight, importance = weights(kind)
    grid = IntegerGrid(bits, GROUP, False, "joint")
    found = lost(grid, weight, importance)
    assert float(found.sum()) < 1.04 * float(exhaustive(grid, weight, importance).sum())
    for rougher in ("minmax", "mse"):
        assert float(found.sum()) <= float(
            lost(IntegerGrid(bits, GROUP, False, rougher), weight, importance).sum()
        )


@pytest.mark.parametrize("kind", ["plain", "shifted"])
def test_fractional_zero_points_are_searched_too(kind: str) -> None:
    weight, importance = weights(kind)
    grid = AffineGrid(2, GROUP, scales="joint", scale_dtype=torch.float32)
    found = lost(grid, weight, importance)
    assert float(found.sum()) < 1.04 * float(exhaustive(grid, weight, importance).sum())
    whole = lost(IntegerGrid(2, GROUP, False, "joint", scale_dtype=torch.float32), weight, importance)
    assert float(found.sum()) < 0.99 * float(whole.sum())


def test_symmetric_grids_keep_their_zero_point() -> None:
    weight, importance = weights("plain")
    grid = IntegerGrid(3, GROUP, True, "joint")
    parameters = grid.fit(weight, Kron(right=Side(importance)))
    assert bool((parameters.zero == 4).all())
    assert float(lost(grid, weight, importance).sum()) <= float(
        lost(IntegerGrid(3, GROUP, True, "mse"), weight, importance).sum() * 1.001
    )


def test_zero_points_stay_where_the_format_has_them() -> None:
    weight, importance = weights("shifted")
    grid = IntegerGrid(4, GROUP, False, "joint", lowest_zero=1)
    parameters = grid.fit(-weight, Kron(right=Side(importance)))
    assert int(parameters.zero.min()) >= 1
    assert int(parameters.zero.max()) <= 15
    assert torch.equal(parameters.scale, parameters.scale.bfloat16().float())


def test_groups_of_one_value_and_of_zeros_are_nearly_exact() -> None:
    weight = torch.zeros(2, 2 * GROUP)
    weight[1] = 0.5
    for grid in (IntegerGrid(2, GROUP, False, "joint"), AffineGrid(2, GROUP, scales="joint")):
        parameters = grid.fit(weight, Kron())
        torch.testing.assert_close(grid.project(weight, parameters), weight, rtol=4e-3, atol=1e-6)


def test_other_types_are_refused() -> None:
    assert Quantize(bits=2, symmetric=False, scales="joint").scales == "joint"
    with pytest.raises(ValueError, match="joint"):
        Quantize(type="fp8", scales="joint")  # type: ignore[call-arg]


GRIDS = {
    "symmetric": IntegerGrid(4, GROUP, True),
    "bytes": IntegerGrid(8, "channel", True, packed=False),
    "zero points": IntegerGrid(3, GROUP, False, scale_dtype=torch.float16),
    "from one": IntegerGrid(2, GROUP, False, lowest_zero=1),
    "fp32 scales": IntegerGrid(2, GROUP, False, scale_dtype=torch.float32),
    "one scale": IntegerGrid(4, "tensor", True),
    "fractions": AffineGrid(4, GROUP),
}


@pytest.mark.parametrize("kind", ["plain", "outlier", "shifted", "important"])
@pytest.mark.parametrize("name", GRIDS)
def test_the_kernel_finds_what_plain_torch_finds(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums are in another order: scales may differ where two are as good, errors may not."""
    weight, costs = weights(kind)
    grid = GRIDS[name]

    def lost_after(near: bool) -> Tensor:
        found = grid.fit_to(weight, costs)
        if near:
            found = grid.fit_to(weight * 1.03 + 0.01, costs, found)
        delta = (weight * (1.03 if near else 1) + (0.01 if near else 0)) - grid.project(
            weight * (1.03 if near else 1) + (0.01 if near else 0), found
        )
        return (delta.double().square() * costs).sum()

    isas = [isa for isa in ("portable", "avx2", "avx512", "avx512_bf16") if isa in native.available()]
    by_kernel = []
    for isa in isas:
        with native.using(isa):
            by_kernel.append((lost_after(False), lost_after(True)))
    monkeypatch.setattr(module.native, "load", lambda: native.Native(False, "none", ""))
    plain = (lost_after(False), lost_after(True))
    for found in by_kernel:
        torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-9)


def test_a_search_near_to_a_fit_is_as_good_as_one_everywhere() -> None:
    weight, costs = weights("plain")
    grid = IntegerGrid(3, GROUP, False)
    near = grid.fit_to(weight * 1.02, costs, grid.fit_to(weight, costs))
    whole = grid.fit_to(weight * 1.02, costs)
    lost = [
        ((weight * 1.02 - grid.project(weight * 1.02, each)).square() * costs).sum() for each in (near, whole)
    ]
    assert lost[0] < 1.05 * lost[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_kernel_stores_scales_as_their_dtype_does(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, GROUP, generator=generator) * 10.0 ** torch.linspace(-9, 3, 64)[:, None]
    scale = IntegerGrid(4, GROUP, True, scale_dtype=dtype).fit_to(weight, torch.ones(GROUP)).scale
    assert torch.equal(scale.to(dtype).float(), scale)
    assert bool((scale != 0).all())
