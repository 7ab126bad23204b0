"""Factorisations are computed once for equal matrices, and freed when another matrix comes or none is left."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from compress.linalg.cholesky import inverse_root, shared_inverse_root
from compress.linalg.factor_cache import FactorCache
from compress.score.metric import Side


class Counter:
    """Computes a new tensor at every call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Tensor:
        self.calls += 1
        return torch.full((2,), float(self.calls))


def test_equal_matrices_share_and_options_do_not() -> None:
    cache, compute, matrix = FactorCache(), Counter(), torch.eye(3)
    first = cache.get(matrix, ("root", 0.1), compute)
    assert cache.get(matrix, ("root", 0.1), compute) is first
    assert cache.get(matrix.clone(), ("root", 0.1), compute) is first
    assert compute.calls == 1
    assert cache.get(matrix, ("root", 0.2), compute) is not first
    assert cache.get(matrix, ("root", 0.1), compute) is first
    assert compute.calls == 2


@pytest.mark.parametrize("other", [2 * torch.eye(3), torch.eye(4), torch.ones(3), torch.eye(3).double()])
def test_another_matrix_replaces_what_was_held(other: Tensor) -> None:
    cache, compute = FactorCache(), Counter()
    matrix = torch.eye(3)
    held = [weakref.ref(matrix), weakref.ref(cache.get(matrix, "root", compute))]
    del matrix
    assert all(ref() is not None for ref in held)
    cache.get(other, "root", compute)
    assert compute.calls == 2
    assert all(ref() is None for ref in held)


def test_clearing_frees_matrix_and_factors() -> None:
    cache, matrix = FactorCache(), torch.eye(3)
    held = [weakref.ref(matrix), weakref.ref(cache.get(matrix, "root", Counter()))]
    del matrix
    cache.clear()
    assert all(ref() is None for ref in held)


def test_shared_roots_of_every_kind_of_side() -> None:
    generator, cache = torch.Generator().manual_seed(0), FactorCache()
    inputs = torch.randn(64, 6, generator=generator)
    sides = [Side(inputs.T @ inputs / 64), Side(torch.tensor([4.0, 1.0, 9.0, 0.5, 2.0, 3.0])), Side()]
    for side in sides:
        for descending in (False, True):
            alone = inverse_root(side, inputs, 0.1, descending=descending)
            shared = shared_inverse_root(side, inputs, 0.1, descending=descending, factors=cache)
            again = shared_inverse_root(side, inputs, 0.1, descending=descending, factors=cache)
            assert again is shared
            assert torch.equal(shared.root, alone.root)
            assert torch.equal(shared.order, alone.order)


def test_an_identity_of_another_size_is_another_matrix() -> None:
    cache = FactorCache()
    sizes = [
        len(shared_inverse_root(Side(), torch.empty(1, n), 0.1, descending=False, factors=cache).root)
        for n in (4, 6)
    ]
    assert sizes == [4, 6]
