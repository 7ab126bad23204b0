"""SparseGPT against the recursion with explicit inverses in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.score.metric import Kron
from compress.solvers.sparsegpt import SparseGPT
from compress.structures.base import SparsityPattern
from compress.structures.grids.integer import IntegerGrid
from compress.structures.sparse.masked import Masked
from compress.structures.sparse.masked_grid import MaskedGrid
from compress.structures.sparse.patterns import NM, Unstructured

HALF = Masked(Unstructured(0.5), torch.float32)
TWO_FOUR = Masked(NM(2, 4), torch.float32)


def slow_sparsegpt(
    weight: Tensor, gram: Tensor, pattern: SparsityPattern, block: int, damping: float
) -> tuple[Tensor, Tensor]:
    """The same by the book: an explicit inverse of what is left, column by column, in float64."""
    weight, gram = weight.double().clone(), gram.double()
    shape = (weight.shape[0], weight.shape[1])
    gram = gram + damping * gram.diagonal().mean() * torch.eye(shape[1], dtype=torch.float64)
    mask = torch.zeros(shape, dtype=torch.bool)
    for j in range(shape[1]):
        if j % block == 0:
            # U_kk² of column k is the first diagonal entry of the inverse of the matrix from k on.
            pivots = torch.stack([torch.linalg.inv(gram[k:, k:])[0, 0] for k in range(j, j + block)])
            cost = (weight[:, j : j + block].square() / pivots).float()
            mask[:, j : j + block] = pattern.columns_block(cost, j, shape)
        inverse = torch.linalg.inv(gram[j:, j:])
        error = weight[:, j] * ~mask[:, j]
        weight[:, j + 1 :] -= torch.outer(error / inverse[0, 0], inverse[0, 1:])
        weight[:, j] *= mask[:, j]
    return weight, mask


@pytest.mark.parametrize(
    ("structure", "block", "choice"),
    [(HALF, 16, 16), (Masked(Unstructured(0.5, "layer"), torch.float32), 32, 32), (TWO_FOUR, 16, 4)],
)
def test_sparsegpt_is_the_recursion(
    make_case: Callable[..., Any], structure: Masked, block: int, choice: int
) -> None:
    problem = make_case(out=8, columns=32).problem(structure)
    assert isinstance(problem.metric, Kron)
    theta, mask = slow_sparsegpt(
        problem.weight, problem.metric.right.full(32, "cpu"), structure.pattern, choice, 0.01
    )
    found = SparseGPT(block=block).solve(problem)
    assert torch.equal(found.parameters.mask, mask)
    assert torch.allclose(found.theta.double(), theta, atol=1e-5)


def test_values_handed_on_unrounded_lie_on_the_mask_alone(make_case: Callable[..., Any]) -> None:
    structure = MaskedGrid(NM(2, 4), IntegerGrid(4, 16, False))
    problem = make_case("plain").problem(structure)
    free = SparseGPT(round=False).solve(problem)
    alone = SparseGPT().solve(make_case("plain").problem(TWO_FOUR))
    assert torch.allclose(free.theta, alone.theta, atol=1e-6)
    rounded = SparseGPT(refit=0).solve(problem, free)
    assert torch.equal(rounded.parameters.mask, free.parameters.mask)
    assert torch.allclose(rounded.encode(structure).dense(torch.float32), rounded.theta, atol=1e-6)


def test_inputs_that_are_always_zero_are_dropped_first(make_case: Callable[..., Any]) -> None:
    problem = make_case("dead").problem(HALF)
    mask = SparseGPT().solve(problem).parameters.mask
    assert not bool(mask[:, :8].any())
    assert int(mask.sum()) == HALF.pattern.kept((24, 64))
