"""HQQ: better in its own norm, never worse than rounding in squares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from compress.score.metric import Kron
from compress.solvers.base import Problem
from compress.solvers.hqq import HQQ
from compress.solvers.nearest import Nearest
from compress.structures.grids.integer import IntegerGrid


@pytest.mark.parametrize("symmetric", [False, True])
def test_never_worse_than_rounding(hard: Any, symmetric: bool) -> None:
    problem = Problem(hard.weight, IntegerGrid(3, "channel", symmetric), Kron())
    nearest, found = Nearest().solve(problem), HQQ().solve(problem)
    assert bool(torch.isfinite(found.theta).all())
    assert problem.metric.loss(hard.weight - found.theta) <= problem.metric.loss(hard.weight - nearest.theta)
    assert torch.allclose(found.encode(problem.structure).dense(torch.float32), found.theta, atol=1e-6)


def test_better_in_its_own_norm(make_case: Callable[..., Any]) -> None:
    case = make_case()
    problem = Problem(case.weight, IntegerGrid(3, 16, False), Kron())
    nearest, found = Nearest().solve(problem), HQQ().solve(problem)

    def norm(theta: torch.Tensor) -> float:
        return float((case.weight - theta).abs().pow(0.7).sum())

    assert norm(found.theta) < 0.95 * norm(nearest.theta)


def test_one_scale_for_all(make_case: Callable[..., Any]) -> None:
    problem = Problem(make_case().weight, IntegerGrid(4, "tensor", True), Kron())
    assert torch.equal(HQQ().solve(problem).theta, Nearest().solve(problem).theta)
