"""Orthogonal matrices: against their dense form in fp64, with and without the vector of ones kept."""

from __future__ import annotations

import pytest
import torch

from compress.transforms.orthogonal import mean_basis, random_hadamard


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("keeps_mean", [False, True])
@pytest.mark.parametrize(
    ("width", "block"), [(64, None), (36, None), (96, 32), (50, None), (69, None), (184, None)]
)
def test_it_is_orthogonal_and_the_stages_are_its_product(
    width: int, block: int | None, keeps_mean: bool
) -> None:
    rotation = random_hadamard(width, _generator(), block=block, keeps_mean=keeps_mean)
    matrix = rotation.matrix()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(width, dtype=torch.float64))
    x = torch.randn(3, 5, 2 * width, dtype=torch.float64, generator=_generator())
    blocks = torch.block_diag(matrix, matrix)
    torch.testing.assert_close(rotation.apply(x), x @ blocks)
    ones = torch.ones(width, dtype=torch.float64)
    assert bool(torch.allclose(ones @ matrix, ones)) == keeps_mean
    assert bool(torch.allclose(matrix @ ones, ones)) == keeps_mean


def test_a_block_never_mixes_features_of_others() -> None:
    matrix = random_hadamard(96, _generator(), block=32).matrix()
    inside = torch.block_diag(*(torch.ones(32, 32),) * 3).bool()
    assert float(matrix[~inside].abs().max()) == 0
    torch.testing.assert_close(
        matrix[inside].abs(), torch.full((3 * 32 * 32,), 32**-0.5, dtype=torch.float64)
    )
    assert random_hadamard(96, _generator(), block=32).label == "Hadamard 32 in 3 blocks"


def test_an_outlier_is_spread_over_all_features() -> None:
    for width in (64, 576):
        row = random_hadamard(width, _generator()).apply(torch.eye(width)[:1])
        torch.testing.assert_close(row.abs(), torch.full((1, width), width**-0.5))


def test_widths_without_a_large_block_get_a_random_matrix_of_the_whole() -> None:
    assert random_hadamard(50, _generator()).label == "random orthogonal 50"
    assert float(random_hadamard(50, _generator()).matrix().abs().max()) < 0.7


def test_blocks_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="blocks of 32 do not divide 80 features"):
        random_hadamard(80, _generator(), block=32)
    with pytest.raises(ValueError, match="no Hadamard matrix of order 6"):
        random_hadamard(12, _generator(), block=6)


def test_signs_follow_the_seed() -> None:
    one, two = (random_hadamard(64, torch.Generator().manual_seed(seed)).matrix() for seed in (0, 1))
    assert not torch.equal(one, two)
    assert torch.equal(one, random_hadamard(64, torch.Generator().manual_seed(0)).matrix())


@pytest.mark.parametrize("size", [1, 2, 7])
def test_the_first_vector_of_the_basis_is_the_mean(size: int) -> None:
    basis = mean_basis(size)
    torch.testing.assert_close(basis.T @ basis, torch.eye(size, dtype=torch.float64))
    torch.testing.assert_close(basis[:, 0], torch.full((size,), size**-0.5, dtype=torch.float64))
