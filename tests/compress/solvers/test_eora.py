"""EoRA against the truncated SVD of the whitened residual, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from compress.score.metric import Kron, Side
from compress.score.statistics import Statistics
from compress.solvers.base import Problem
from compress.solvers.eora import EoRA
from compress.solvers.nearest import Nearest
from compress.structures.grids.integer import IntegerGrid
from compress.structures.low_rank.factors import Factors, Storage
from compress.structures.low_rank.sums import FactorsAnd


@pytest.mark.parametrize("bits", [3, 2])
@pytest.mark.parametrize("settings", [{"rank": 8}, {"rank": 8, "bits": 8}])
def test_eora_reduces_the_error(
    observed_weight: Tensor, observed: Statistics, solve_step: Any, bits: int, settings: dict[str, Any]
) -> None:
    quantize = {"bits": bits, "group_size": 32, "symmetric": False}
    alone, _, _ = solve_step(observed_weight, observed, quantize=quantize, solver="gptq")
    error, _, record = solve_step(
        observed_weight, observed, quantize=quantize, lowrank=settings, solver=["gptq", "eora"]
    )
    assert error < 0.9 * alone
    assert record["info"]["uncompensated"] == pytest.approx(alone, rel=0.05)


def test_the_factors_are_the_truncation_of_the_whitened_residual(
    observed_weight: Tensor, observed: Statistics
) -> None:
    assert observed.gram is not None
    structure = FactorsAnd(
        Factors(rank=8, storage=Storage(torch.float32), inside=True), IntegerGrid(2, 32, False)
    )
    problem = Problem(observed_weight, structure, Kron(right=Side(observed.gram)), observed)
    start = Nearest().solve(problem)
    found = EoRA().solve(problem, start)
    root = torch.linalg.cholesky(observed.gram.double())
    left, values, right = torch.linalg.svd(
        (observed_weight - start.theta).double() @ root, full_matrices=False
    )
    best = left[:, :8] * values[:8] @ right[:8] @ torch.linalg.inv(root)
    expected = problem.metric.loss(observed_weight - start.theta - best.float())
    assert problem.metric.loss(observed_weight - found.theta) == pytest.approx(expected, rel=1e-3)
    assert torch.equal(found.parameters.values, start.theta)
