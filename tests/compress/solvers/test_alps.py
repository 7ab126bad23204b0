"""ALPS: ADMM's mask and the least-squares values on it, against dense solves in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from compress.linalg.admm import split
from compress.linalg.factor_cache import FactorCache
from compress.solvers.alps import ALPS
from compress.solvers.wanda import Wanda
from compress.structures.sparse.masked import Masked
from compress.structures.sparse.patterns import NM, Unstructured


@pytest.mark.parametrize("pattern", [Unstructured(0.6), NM(2, 4)], ids=str)
def test_values_are_least_squares_on_the_mask_of_admm(make_case: Callable[..., Any], pattern: Any) -> None:
    problem = make_case("outliers20", out=10, columns=32).problem(Masked(pattern, torch.float32))
    found = ALPS(refine=200).solve(problem)
    assert torch.equal(
        found.parameters.mask, split(problem.weight, problem.metric, pattern.choose, 300, FactorCache()).mask
    )
    gram, weight = problem.metric.right.matrix.double(), problem.weight.double()
    for row, kept in enumerate(found.parameters.mask):
        exact = torch.linalg.solve(gram[kept][:, kept], gram[kept] @ weight[row])
        torch.testing.assert_close(found.theta[row, kept].double(), exact, rtol=1e-3, atol=1e-4)
    assert problem.relative_error(found.theta) < 0.9 * problem.relative_error(Wanda().solve(problem).theta)
