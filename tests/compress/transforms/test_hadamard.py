"""Hadamard matrices: the definition, for every order that is said to exist."""

from __future__ import annotations

import pytest
import torch

from compress.transforms.hadamard import factors_of, hadamard, has_hadamard, largest_block, paley

ORDERS = (
    1,
    2,
    4,
    8,
    12,
    20,
    24,
    28,
    36,
    40,
    44,
    48,
    52,
    60,
    64,
    76,
    80,
    84,
    100,
    108,
    112,
    148,
    244,
    576,
    896,
)


@pytest.mark.parametrize("order", ORDERS)
def test_rows_are_orthogonal_and_of_ones(order: int) -> None:
    matrix = hadamard(order)
    assert set(matrix.flatten().tolist()) <= {1.0, -1.0}
    torch.testing.assert_close(matrix @ matrix.T, order * torch.eye(order))
    assert bool((matrix[0] == 1).all())
    assert bool((matrix[:, 0] == 1).all())


def test_prime_powers_need_a_field_of_polynomials() -> None:
    # 27 = 3^3 (first kind), 25 = 5^2 and 9 = 3^2 (second kind): residues modulo 27, 25 and 9 would not do.
    for order in (28, 52, 20):
        matrix = paley(order)
        torch.testing.assert_close(matrix @ matrix.T, order * torch.eye(order))


@pytest.mark.parametrize("order", [3, 6, 14, 92, 0])
def test_orders_without_a_construction_are_refused(order: int) -> None:
    assert not has_hadamard(order)
    with pytest.raises(ValueError, match=f"no Hadamard matrix of order {order}"):
        factors_of(order)


@pytest.mark.parametrize(
    ("width", "block"),
    [(576, 576), (896, 896), (5120, 5120), (3584, 3584), (11008, 11008), (92, 4), (50, 2), (7, 1), (184, 8)],
)
def test_the_largest_block_divides_the_width(width: int, block: int) -> None:
    assert largest_block(width) == block
