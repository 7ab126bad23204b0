"""Statistics in another basis: those of the rotated inputs themselves, in float64."""

from __future__ import annotations

import torch
from compress_kernels.activations import ActivationScheme, hadamard_blocks

from compress.score.rotated import in_rounded_basis
from compress.score.statistics import Statistics


def test_moments_are_those_of_the_rotated_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    x, dense = (torch.randn(64, 24, generator=generator) for _ in range(2))
    seen = Statistics(
        64,
        gram=x.T @ x / 64,
        diagonal=x.square().mean(0),
        mean=x.mean(0),
        cross=dense.T @ x / 64,
        sample=x[:5],
    )
    found = in_rounded_basis(seen, ActivationScheme(4, hadamard=8))
    y, z = hadamard_blocks(x, 8), hadamard_blocks(dense, 8)
    for moment, expected in (
        (found.gram, y.T @ y / 64),
        (found.diagonal, y.square().mean(0)),
        (found.mean, y.mean(0)),
        (found.cross, z.T @ y / 64),
        (found.sample, y[:5]),
    ):
        assert moment is not None
        torch.testing.assert_close(moment, expected)
    assert found.tokens == 64


def test_a_diagonal_alone_is_not_known_in_another_basis() -> None:
    seen = Statistics(4, diagonal=torch.ones(8))
    assert in_rounded_basis(seen, ActivationScheme(4, hadamard=8)).diagonal is None


def test_nothing_rotated_nothing_changed() -> None:
    seen = Statistics(4, gram=torch.eye(8))
    assert in_rounded_basis(seen, ActivationScheme(4)) is seen
    assert in_rounded_basis(seen, None) is seen
