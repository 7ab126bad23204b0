"""Inverse Cholesky factors against float64 inverses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress.errors import UserError
from compress.linalg.cholesky import damped, inverse_root
from compress.score.metric import Side


def gram_of(size: int, tokens: int = 4000) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(tokens, size, generator=generator) * torch.linspace(0.5, 2, size)
    return inputs.T @ inputs / tokens


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("size", [5, 256, 600, 1400])  # within a panel, one panel, several, several strips
def test_its_square_is_the_inverse(size: int, descending: bool) -> None:
    gram = gram_of(size)
    factor = inverse_root(Side(gram), gram, 0.1, descending=descending)
    diagonal = gram.diagonal()
    assert factor.damping == 0.1
    assert torch.equal(factor.order.sort().values, torch.arange(size))
    ordered = diagonal[factor.order]
    assert not descending or bool((ordered.diff() <= 0).all())
    assert descending or torch.equal(factor.order, torch.arange(size))
    assert torch.equal(factor.root, factor.root.triu())
    full = gram.double() + 0.1 * float(diagonal.double().mean()) * torch.eye(size, dtype=torch.float64)
    root = factor.root.double()
    product = root.T @ root @ full[factor.order[:, None], factor.order]
    torch.testing.assert_close(product, torch.eye(size, dtype=torch.float64), rtol=0, atol=2e-4)


def test_the_sides_of_a_metric() -> None:
    diagonal = torch.tensor([4.0, 1.0, 9.0])
    factor = inverse_root(Side(diagonal), diagonal, 0.0, descending=True)
    assert factor.order.tolist() == [2, 0, 1]
    torch.testing.assert_close(factor.root, torch.diag(torch.tensor([1 / 3, 1 / 2, 1.0])))
    identity = inverse_root(Side(), torch.empty(2, 3), 0.0, descending=True)
    torch.testing.assert_close(identity.root, torch.eye(3))


def test_columns_that_were_never_seen_neither_move_nor_are_moved() -> None:
    gram = gram_of(8)
    gram[2] = gram[:, 2] = 0
    factor = inverse_root(Side(gram), gram, 0.01, descending=False)
    row, column = factor.root[2].clone(), factor.root[:, 2].clone()
    assert float(row[2]) == float(column[2]) == 1.0
    row[2] = column[2] = 0
    assert not bool(row.any())
    assert not bool(column.any())
    # The damping is relative to what was seen.
    rest = torch.tensor([0, 1, 3, 4, 5, 6, 7])
    alone = inverse_root(Side(gram[rest[:, None], rest]), gram[:7, :7], 0.01, descending=False)
    torch.testing.assert_close(factor.root[rest[:, None], rest], alone.root)


def test_damping_grows_only_while_the_factorisation_fails() -> None:
    inputs = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    gram = inputs.T @ inputs / 3
    factor = inverse_root(Side(gram), gram, 0.0, descending=False)
    assert 0 < factor.damping <= 1e-4
    assert bool(torch.isfinite(factor.root).all())
    assert inverse_root(Side(gram), gram, 0.01, descending=False).damping == 0.01


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite(value: float) -> None:
    gram = gram_of(4)
    gram[1, 2] = gram[2, 1] = value
    with pytest.raises(UserError, match="not finite"):
        inverse_root(Side(gram), gram, 0.01, descending=False)


def test_damped_matrices_heed_what_was_seen() -> None:
    gram = torch.diag(torch.tensor([2.0, 0.0, 4.0]))
    assert torch.equal(damped(gram, 0.5).diagonal(), torch.tensor([3.5, 0.0, 5.5]))
    assert torch.equal(gram.diagonal(), torch.tensor([2.0, 0.0, 4.0]))
    assert torch.equal(damped(torch.zeros(2, 2), 0.5), torch.zeros(2, 2))
