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


def slow_hqq(weight: torch.Tensor, scale: float, zero: int, top: int, iterations: int) -> tuple[float, int]:
    """One group in float64, element by element: the best scale and zero point in the norm among those good in squares."""
    values = [float(v) for v in weight]
    best = (float("inf"), scale, zero)
    limit, strength = None, 10.0
    for turn in range(iterations + 1):
        codes = [min(max(round(v / scale) + zero, 0), top) for v in values]
        residual = [v - (c - zero) * scale for v, c in zip(values, codes, strict=True)]
        norm, squares = sum(abs(r) ** 0.7 for r in residual), sum(r * r for r in residual)
        limit = squares if limit is None else limit
        if norm < best[0] and squares <= limit * (1 + 1e-9):
            best = (norm, scale, zero)
        if turn == iterations:
            break
        units = [r / scale for r in residual]
        errors = [(abs(u) - max(abs(u), 1e-8) ** -0.3 / strength) for u in units]
        aims = [
            v / scale - (max(e, 0) if u > 0 else -max(e, 0))
            for v, u, e in zip(values, units, errors, strict=True)
        ]
        zero = min(max(round(sum(c - a for c, a in zip(codes, aims, strict=True)) / len(values)), 0), top)
        centred = [c - zero for c in codes]
        whole = sum(c * c for c in centred)
        factor = sum(c * a for c, a in zip(centred, aims, strict=True)) / whole if whole else 1.0
        scale *= min(max(factor, 0.5), 2.0)
        strength *= 1.01
    return best[1], best[2]


def test_grids_are_those_of_a_loop_over_the_elements(make_case: Callable[..., Any]) -> None:
    weight = make_case(out=6, columns=32).weight
    grid = IntegerGrid(3, 16, False, scale_dtype=torch.float32)
    problem = Problem(weight, grid, Kron())
    fitted, found = grid.fit(weight, Kron()), HQQ().solve(problem).parameters
    plain = problem.metric.row_losses(weight - grid.project(weight, fitted))
    taken = problem.metric.row_losses(weight - grid.project(weight, found)) < plain
    agree = 0
    for row in range(6):
        for group in range(2):
            part = weight[row, 16 * group : 16 * group + 16].double()
            start = float(fitted.scale[row, group]), int(fitted.zero[row, group])
            scale, zero = slow_hqq(part, *start, 7, 20)
            same = (
                zero == int(found.zero[row, group]) and abs(scale / float(found.scale[row, group]) - 1) < 1e-4
            )
            agree += same or not bool(taken[row])
    assert agree >= 11
    assert int(taken.sum()) >= 4


def test_one_scale_for_all(make_case: Callable[..., Any]) -> None:
    problem = Problem(make_case().weight, IntegerGrid(4, "tensor", True), Kron())
    assert torch.equal(HQQ().solve(problem).theta, Nearest().solve(problem).theta)
