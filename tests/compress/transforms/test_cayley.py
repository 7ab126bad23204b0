"""Cayley steps: orthogonal whatever the step, downhill, and still where the gradient is along the matrix."""

from __future__ import annotations

import pytest
import torch

from compress.transforms.cayley import cayley_step


def _orthogonal(size: int, seed: int) -> torch.Tensor:
    gaussian = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(gaussian).Q


@pytest.mark.parametrize("rate", [1e-3, 1.0, 1e6])
def test_the_result_is_orthogonal(rate: float) -> None:
    matrix, gradient = _orthogonal(12, 0), 100 * _orthogonal(12, 1)
    stepped = cayley_step(matrix, gradient, rate)
    torch.testing.assert_close(stepped @ stepped.T, torch.eye(12, dtype=torch.float64))
    assert not torch.allclose(stepped, matrix)


def test_steps_find_the_nearest_orthogonal_matrix() -> None:
    target = _orthogonal(8, 2)
    if torch.linalg.det(target) < 0:  # rotations alone are reached from the identity
        target[0] *= -1
    matrix = torch.eye(8, dtype=torch.float64)
    before = float((matrix - target).square().sum())
    for _ in range(300):
        matrix = cayley_step(matrix, matrix - target, 0.5)
    assert float((matrix - target).square().sum()) < 1e-3 * before


def test_a_small_step_goes_down_at_first_order() -> None:
    matrix, gradient = _orthogonal(6, 3), _orthogonal(6, 4)
    moved = cayley_step(matrix, gradient, 1e-5) - matrix
    skew = gradient @ matrix.T - matrix @ gradient.T
    torch.testing.assert_close(moved, -1e-5 * skew @ matrix, rtol=1e-3, atol=1e-9)
    assert float((moved * gradient).sum()) < 0


def test_no_gradient_no_step_and_nan_is_refused() -> None:
    matrix = _orthogonal(4, 5)
    assert torch.equal(cayley_step(matrix, torch.zeros_like(matrix), 1.0), matrix)
    with pytest.raises(ValueError, match="not finite"):
        cayley_step(matrix, torch.full_like(matrix, float("nan")), 1.0)
