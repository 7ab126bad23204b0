"""Value tables against brute force over all values."""

from __future__ import annotations

import pytest
import torch

from compress.linalg.value_table import ValueTable

VALUES = torch.tensor([-1.0, -0.7, -0.1, 0.0, 0.4, 2.0])
TABLE = ValueTable(VALUES)


def elements() -> torch.Tensor:
    return 1.5 * torch.randn(40, 7, generator=torch.Generator().manual_seed(0))


def test_nearest_is_the_nearest_of_all() -> None:
    expected = (elements().unsqueeze(-1) - VALUES).abs().argmin(-1)
    assert torch.equal(TABLE.codes(elements()), expected)
    assert torch.equal(TABLE.nearest(elements()), VALUES[expected])


def test_position_is_linear_between_neighbours() -> None:
    assert torch.equal(TABLE.position(VALUES), torch.arange(6.0))
    for lower in range(5):
        low, high = VALUES[lower], VALUES[lower + 1]
        assert TABLE.position((0.75 * low + 0.25 * high).view(1)) == pytest.approx(lower + 0.25, abs=1e-6)


def test_beyond_the_ends_the_last_spacing_goes_on() -> None:
    assert TABLE.position(torch.tensor([-1.6, 5.2])) == pytest.approx([-2.0, 7.0], abs=1e-5)


def test_values_are_the_inverse_of_positions() -> None:
    assert torch.equal(TABLE.at(torch.arange(6.0)), VALUES)
    assert torch.equal(TABLE.at(torch.arange(6)), VALUES)
    torch.testing.assert_close(TABLE.at(TABLE.position(elements())), elements(), rtol=0, atol=1e-6)


def test_the_gradient_by_the_code_is_the_spacing() -> None:
    codes = torch.tensor([0.5, 1.25, 4.0, 4.9], requires_grad=True)
    TABLE.at(codes).sum().backward()
    torch.testing.assert_close(codes.grad, torch.tensor([0.3, 0.6, 1.6, 1.6]))
