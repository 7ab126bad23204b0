"""Scales of small floats against a search over every value that the format can store."""

from __future__ import annotations

import pytest
import torch
from compress_kernels.layouts.floats import rising_values
from torch import Tensor

from compress.linalg.float_scales import (
    E4M3Table,
    FloatTable,
    ScaleFormat,
    candidate_steps,
    largest_scale,
    moved_scale,
    search_scales,
    stored_scale,
)

E2M1 = FloatTable(torch.tensor(rising_values("e2m1")))
E4M3 = E4M3Table(torch.tensor(rising_values("e4m3")))
POSITIVE_E4M3 = torch.arange(1, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()


def drawn(groups: int = 40, width: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(groups, width, generator=generator)
    return values, torch.rand(groups, width, generator=generator) + 0.1


def error(values: Tensor, costs: Tensor, scale: Tensor, table: FloatTable) -> Tensor:
    """The weighted squared error of each group, float64, element by element."""
    allowed = table.values.double() * scale.double().view(-1, 1, 1)
    nearest = (values.double().unsqueeze(-1) - allowed).abs().amin(-1)
    return (costs.double() * nearest.square()).sum(1)


@pytest.mark.parametrize(("form", "outer"), [("e4m3", 90.0), ("e8m0", None)])
def test_the_search_finds_the_best_of_all_stored_scales(form: ScaleFormat, outer: float | None) -> None:
    values, costs = drawn()
    divisor = None if outer is None else torch.tensor([outer])
    unit = values.abs().amax(1) * (outer or 1.0)
    found = search_scales(values, costs, E2M1, largest_scale(unit, 6.0, form), form, divisor)
    every = POSITIVE_E4M3 if form == "e4m3" else torch.exp2(torch.arange(-20, 10).float())
    errors = torch.stack(
        [error(values, costs, (scale / (outer or 1.0)).expand(len(values)), E2M1) for scale in every]
    )
    best = error(values, costs, found / (outer or 1.0), E2M1)
    torch.testing.assert_close(best, errors.amin(0), rtol=1e-5, atol=1e-9)


def test_the_search_contains_four_over_six() -> None:
    """A group whose second value would fall between 4 and 6 is scaled to 4."""
    values = torch.tensor([[4.0, 3.0] + [2.0] * 14])
    first = largest_scale(torch.tensor([4.0 * 64]), 6.0, "e4m3")
    found = search_scales(values, torch.ones_like(values), E2M1, first, "e4m3", torch.tensor([64.0]))
    assert float(found / 64) == 1.0
    assert torch.equal(E2M1.nearest(values / (found / 64)), values)


def test_ties_go_to_the_even_code_as_processors_round() -> None:
    halfway = (E4M3.values[1:] + E4M3.values[:-1]) / 2
    expected = halfway.to(torch.float8_e4m3fn).float()
    assert torch.equal(E4M3.values[E4M3.codes(halfway)], expected)
    assert torch.equal(E4M3.nearest(halfway), expected)
    fours = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    even = torch.tensor([0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0])
    assert torch.equal(E2M1.nearest(fours), even)
    assert torch.equal(E2M1.nearest(-fours), -even)


def test_values_beyond_the_largest_are_clipped() -> None:
    far = torch.tensor([-1e9, 1e9, -460.0, 470.0])
    assert E4M3.nearest(far).tolist() == [-448.0, 448.0, -448.0, 448.0]
    assert E2M1.nearest(far).tolist() == [-6.0, 6.0, -6.0, 6.0]


@pytest.mark.parametrize("form", ["e4m3", "e8m0", torch.bfloat16])
def test_stored_scales_stay_and_never_vanish(form: ScaleFormat) -> None:
    scale = stored_scale(torch.tensor([0.0, 1e-30, 1e-4, 0.3, 1.0, 300.0]), form)
    assert torch.equal(stored_scale(scale, form), scale)
    assert bool((scale > 0).all())
    above = moved_scale(scale, 1, form)
    assert bool((above >= scale).all())
    if isinstance(form, str):
        assert torch.equal(moved_scale(above, -1, form)[2:5], scale[2:5])


def test_scales_by_the_largest_value() -> None:
    largest = torch.tensor([0.0, 6.0, 7.9, 8.0, 0.75])
    assert largest_scale(largest, 6.0, "e8m0").tolist() == [1.0, 1.0, 1.0, 2.0, 0.125]
    assert largest_scale(largest[:2], 6.0, "e4m3").tolist() == [1.0, 1.0]
    assert 0 in candidate_steps("e8m0")
