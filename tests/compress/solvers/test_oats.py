"""OATS against algorithm 2 with a full SVD in each round, in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compress.score.metric import Kron, Side
from compress.score.statistics import Statistics
from compress.solvers.base import Problem
from compress.solvers.oats import OATS, alternated
from compress.structures.low_rank.factors import Factors
from compress.structures.low_rank.sums import FactorsAnd
from compress.structures.sparse.masked import Masked
from compress.structures.sparse.patterns import Unstructured


def test_oats_beats_either_part_alone(observed_weight: Tensor, observed: Statistics, solve_step: Any) -> None:
    together, _, record = solve_step(
        observed_weight,
        observed,
        lowrank={"ratio": 0.25},
        prune={"sparsity": 0.55},
        solver={"name": "oats", "rounds": 20},
    )
    low, _, _ = solve_step(observed_weight, observed, lowrank={"ratio": 0.75}, solver="weighted_svd")
    assert together < low
    assert record["error"] <= record["error_nearest"]


def slow_oats(
    weight: Tensor, diagonal: Tensor, rank: int, sparsity: float, rounds: int
) -> tuple[Tensor, Tensor]:
    """Mask and sparse part by alternating projections, every SVD in full."""
    scale = diagonal.double().sqrt()
    scaled, sparse = weight.double() * scale, torch.zeros_like(weight).double()
    for _ in range(rounds):
        left, values, right = torch.linalg.svd(scaled - sparse, full_matrices=False)
        rest = scaled - left[:, :rank] * values[:rank] @ right[:rank]
        mask = Unstructured(sparsity).choose(rest.square().float())
        sparse = rest * mask
    return mask, sparse / scale


def test_the_alternation_is_that_of_the_paper(observed: Statistics) -> None:
    """A low-rank weight plus a sparse one, where the projections have a clear answer."""
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(64, 4, generator=generator) @ torch.randn(4, 96, generator=generator)
    weight += 20 * torch.randn(64, 96, generator=generator) * (torch.rand(64, 96, generator=generator) < 0.05)
    assert observed.gram is not None
    assert observed.diagonal is not None
    metric = Kron(right=Side(observed.gram))
    mask, sparse = alternated(weight, metric, Masked(Unstructured(0.9), torch.float32), 4, 1)
    expected, values = slow_oats(weight, observed.diagonal, 4, 0.9, 1)
    assert torch.equal(mask, expected)
    torch.testing.assert_close(sparse.double(), values, rtol=1e-3, atol=1e-3)
    # Later rounds take one step of subspace iteration where the reference takes a full SVD.
    found, reference = (
        as_error(weight, part, observed.diagonal)
        for part in (
            alternated(weight, metric, Masked(Unstructured(0.9), torch.float32), 4, 60)[1].double(),
            slow_oats(weight, observed.diagonal, 4, 0.9, 60)[1],
        )
    )
    assert found < 1.05 * reference
    assert reference < 0.5 * as_error(weight, values, observed.diagonal)


def as_error(weight: Tensor, sparse: Tensor, diagonal: Tensor) -> float:
    """What a truncation of rank 4 leaves of the weight less its sparse part, in the diagonal's coordinates."""
    values = torch.linalg.svdvals((weight.double() - sparse) * diagonal.double().sqrt())
    return float(values[4:].square().sum())


def test_refits_never_raise_the_loss(observed_weight: Tensor, observed: Statistics) -> None:
    structure = FactorsAnd(Factors(rank=8, inside=True), Masked(Unstructured(0.7), torch.float32))
    problem = Problem(observed_weight, structure, Kron(right=Side(observed.gram)), observed)
    losses = [problem.relative_error(OATS(rounds=5, refits=n).solve(problem).theta) for n in (0, 1, 3)]
    assert losses[0] >= losses[1] >= losses[2]
    assert losses[2] < 0.95 * losses[0]
