"""EVA and LoRA: factors that leave the weight as it is, and begin where healing is to go on."""

from __future__ import annotations

import pytest
import torch

from compress.score.metric import Kron, Side
from compress.score.statistics import Statistics
from compress.solvers.base import Problem, nearest_point
from compress.solvers.eva import EVA
from compress.solvers.lora import LoRA
from compress.structures.grids.integer import IntegerGrid
from compress.structures.low_rank.factors import Factors, Storage
from compress.structures.low_rank.sums import FactorsAnd

RANK = 3


def problem() -> Problem[FactorsAnd[IntegerGrid]]:
    """Inputs that lie mostly in three directions."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 32, generator=generator)
    loud = torch.randn(200, RANK, generator=generator) @ torch.randn(RANK, 32, generator=generator)
    inputs = loud * torch.tensor(5.0) + 0.1 * torch.randn(200, 32, generator=generator)
    gram = inputs.T @ inputs / 200
    structure = FactorsAnd(
        Factors(rank=RANK, storage=Storage(torch.float32), inside=True), IntegerGrid(2, 32)
    )
    return Problem(weight, structure, Kron(right=Side(gram)), Statistics(tokens=200, gram=gram))


@pytest.mark.parametrize("solver", [EVA(), LoRA()])
def test_the_weight_stays_and_the_left_factor_is_0(solver: EVA | LoRA) -> None:
    one = problem()
    start = nearest_point(one, one.target)
    found = solver.solve(one, start)
    torch.testing.assert_close(found.theta, start.theta)
    factors = found.parameters.factors
    assert not bool(factors.left.values.any())
    size = float(one.weight.square().mean().sqrt())
    assert float(factors.right.values.square().mean().sqrt()) == pytest.approx(size, rel=0.2)


def test_eva_begins_in_the_directions_of_the_inputs() -> None:
    """An independent witness: the right singular vectors of the inputs, by their subspace."""
    one = problem()
    found = EVA().solve(one, None)
    assert one.statistics.gram is not None
    _, _, vectors = torch.linalg.svd(one.statistics.gram.double())
    rows = found.parameters.factors.right.values.double()
    rows = rows / rows.norm(dim=1, keepdim=True)
    torch.testing.assert_close(
        (rows @ vectors[:RANK].T).square().sum(1), torch.ones(RANK, dtype=torch.float64)
    )
    assert found.info["explained"] > 0.99  # type: ignore[operator]


def test_eva_without_inputs_leaves_what_was_there() -> None:
    one = problem()
    start = nearest_point(one, one.target)
    assert EVA().solve(Problem(one.weight, one.structure, one.metric, Statistics(tokens=0)), start) is start


def test_lora_is_drawn_by_the_seed() -> None:
    one = problem()
    draws = [
        LoRA()
        .solve(Problem(one.weight, one.structure, one.metric, seed=seed))
        .parameters.factors.right.values
        for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
