"""Truncation in a metric against the singular values of the weight between both roots, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress.linalg.weighted_svd import (
    FLOOR,
    as_kron,
    common_inputs,
    decompose,
    refit_left,
    refit_right,
    side_root,
    solve_symmetric,
)
from compress.score.metric import Elementwise, Kron, Side


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def square(size: int, seed: int) -> Tensor:
    inputs = drawn(4 * size, size, seed=seed)
    return inputs.T @ inputs / len(inputs)


def root(side: Side, size: int) -> Tensor:
    return torch.linalg.cholesky(side.full(size, "cpu").double())


@pytest.mark.parametrize("shape", [(7, 12), (12, 7), (8, 8)])
@pytest.mark.parametrize("sides", ["none", "diagonal", "right", "both"])
def test_the_loss_of_a_rank_is_that_of_the_singular_values_behind_it(
    shape: tuple[int, int], sides: str
) -> None:
    out, columns = shape
    metric = {
        "none": Kron(),
        "diagonal": Kron(
            Side(drawn(out, seed=3).square() + 0.1), Side(drawn(columns, seed=4).square() + 0.1)
        ),
        "right": Kron(right=Side(square(columns, 5))),
        "both": Kron(Side(square(out, 6)), Side(square(columns, 5))),
    }[sides]
    weight = drawn(*shape)
    parts = decompose(weight, metric)
    values = torch.linalg.svdvals(root(metric.left, out).T @ weight.double() @ root(metric.right, columns))
    torch.testing.assert_close(parts.values, values, rtol=1e-5, atol=1e-5)
    for rank in (1, 3, 6):
        low = (parts.left[:, :rank] @ parts.right[:rank]).float()
        tail = float(values[rank:].square().sum())
        assert metric.loss(weight - low) == pytest.approx(tail, rel=1e-3)
        assert parts.lost(rank) == pytest.approx(tail / float(values.square().sum()), rel=1e-4)
    torch.testing.assert_close(parts.left.norm(dim=0), parts.right.norm(dim=1))
    assert parts.lost(7) == 0 if min(shape) == 7 else parts.lost(8) == 0


def test_a_singular_side_is_lifted_and_told() -> None:
    left = torch.diag(torch.tensor([1.0, 2.0, 3.0, 0.0, 0.0, 0.0]))
    parts = decompose(drawn(6, 6, seed=1), Kron(Side(left)))
    assert parts.lifted == 3
    assert bool(torch.isfinite(parts.left).all())


def test_fewer_outputs_than_inputs_take_a_singular_gram_matrix_as_it_is() -> None:
    inputs, weight = drawn(5, 12), drawn(4, 12, seed=1)
    metric = Kron(right=Side(inputs.T @ inputs))
    parts = decompose(weight, metric)
    assert parts.lifted == 0
    values = torch.linalg.svdvals(weight.double() @ inputs.double().T)
    torch.testing.assert_close(parts.values, values, rtol=1e-4, atol=1e-4)


def test_the_other_factor_is_the_least_squares_one() -> None:
    weight, metric = drawn(6, 9), Kron(Side(square(6, 1)), Side(square(9, 2)))
    left, right = drawn(6, 3, seed=3), drawn(3, 9, seed=4)
    fitted_right, fitted_left = refit_right(weight, left, metric), refit_left(weight, right, metric)
    for theta, directions in (
        (left.double() @ fitted_right, [left.double() @ drawn(3, 9, seed=s).double() for s in range(5)]),
        (fitted_left @ right.double(), [drawn(6, 3, seed=s).double() @ right.double() for s in range(5)]),
    ):
        gradient = (
            metric.left.full(6, "cpu").double()
            @ (weight.double() - theta)
            @ metric.right.full(9, "cpu").double()
        )
        for direction in directions:
            assert abs(float((gradient * direction).sum())) < 1e-5 * float(
                gradient.norm() * direction.norm() + 1
            )


def test_one_right_factor_for_several_weights() -> None:
    right = Side(square(8, 1))
    weights = [drawn(5, 8, seed=2), drawn(9, 8, seed=3)]
    metrics = [Kron(Side(square(5, 4)), right), Kron(Side(drawn(9, seed=5).square() + 0.1), right)]
    factor, values = common_inputs(weights, metrics)
    stacked = torch.cat([root(m.left, len(w)).T @ w.double() for w, m in zip(weights, metrics, strict=True)])
    expected = torch.linalg.svdvals(stacked @ root(right, 8))
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-8)
    rank = 3
    losses = [
        m.loss(w - (refit_left(w, factor[:rank], m) @ factor[:rank]).float())
        for w, m in zip(weights, metrics, strict=True)
    ]
    assert sum(losses) == pytest.approx(float(expected[rank:].square().sum()), rel=1e-3)


def test_a_side_of_zeros_counts_as_the_identity() -> None:
    kron = as_kron(Kron(Side(torch.zeros(3, 3)), Side(torch.zeros(4))))
    assert kron.left.matrix is None
    assert kron.right.matrix is None
    weight = drawn(3, 4)
    torch.testing.assert_close(decompose(weight, kron).values, torch.linalg.svdvals(weight.double()))


def test_elements_count_as_the_product_of_their_means() -> None:
    rows, columns = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.5, 1.0, 1.5, 1.0])
    kron = as_kron(Elementwise(torch.outer(rows, columns)))
    product = torch.outer(kron.left.diagonal(3, "cpu"), kron.right.diagonal(4, "cpu"))
    torch.testing.assert_close(product, torch.outer(rows, columns))


def test_roots_of_sides() -> None:
    matrix = square(5, 1)
    found, inverse = side_root(Side(matrix), 5, matrix.device)
    torch.testing.assert_close(found @ found.T, matrix.double())
    torch.testing.assert_close(inverse @ found, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-10)
    found, inverse = side_root(Side(torch.tensor([4.0, 0.0])), 2, matrix.device)
    torch.testing.assert_close(found, torch.tensor([2.0, 2 * FLOOR**0.5], dtype=torch.float64))
    torch.testing.assert_close(found * inverse, torch.ones(2, dtype=torch.float64))


def test_a_singular_system_leaves_what_nothing_is_known_of_at_zero() -> None:
    gram = torch.diag(torch.tensor([2.0, 0.0], dtype=torch.float64))
    solution = solve_symmetric(gram, torch.tensor([[4.0], [3.0]], dtype=torch.float64))
    torch.testing.assert_close(solution, torch.tensor([[2.0], [0.0]], dtype=torch.float64))


def best_of_rank(weight: Tensor, metric: Kron, rank: int) -> tuple[Tensor, Tensor]:
    """The best weight of a rank by Cholesky factors and a full SVD, and the singular values, in float64."""
    out, columns = weight.shape
    left = torch.linalg.cholesky(metric.left.full(out, "cpu").double())
    right = torch.linalg.cholesky(metric.right.full(columns, "cpu").double())
    u, s, v = torch.linalg.svd(left.T @ weight.double() @ right, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ v[:rank]
    return torch.linalg.solve(left.T, best) @ torch.linalg.inv(right), s


@pytest.mark.parametrize("shape", [(48, 80), (80, 48), (64, 64)])
def test_truncation_is_the_best_weight_of_its_rank(shape: tuple[int, int]) -> None:
    metric = Kron(Side(square(shape[0], 1)), Side(square(shape[1], 2)))
    parts = decompose(drawn(*shape), metric)
    best, values = best_of_rank(drawn(*shape), metric, 16)
    torch.testing.assert_close(parts.left[:, :16] @ parts.right[:16], best, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts.values, values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(48, 80), (80, 48), (64, 64)])
def test_singular_sides_do_no_harm(shape: tuple[int, int]) -> None:
    weight = drawn(*shape)
    for left, right in ((4, 6), (4, 200), (200, 4)):
        low = torch.randn(shape[0], left, generator=torch.Generator().manual_seed(3))
        few = torch.randn(shape[1], right, generator=torch.Generator().manual_seed(4))
        metric = Kron(Side(low @ low.T), Side(few @ few.T))
        parts = decompose(weight, metric)
        theta = (parts.left[:, :8] @ parts.right[:8]).float()
        assert torch.isfinite(theta).all()
        if min(left, right) <= 8:  # so few directions cost anything that eight ranks hold them all
            assert metric.loss(weight - theta) <= 1e-4 * metric.loss(weight)
