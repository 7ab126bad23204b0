"""One weight from dense to packed: its solvers in turn, held against plain rounding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compress.methods import Methods
from compress.metric import Metric
from compress.solve.base import Problem, Solution
from compress.solve.nearest import Nearest
from compress.statistics import Statistics
from compress.structures.base import CompressedWeight

_JUDGED_ROWS = 1024
"""Rows on which errors are measured: a product with the Gram matrix costs as much as a solver does."""


NOTHING_SEEN = Statistics()


@dataclass
class Metrics:
    """The metric of each set of statistics, built once, so that weights sharing inputs share its factors."""

    _made: dict[tuple[int, str], tuple[Statistics, Metric]] = field(default_factory=dict)

    def of(self, methods: Methods, statistics: Statistics) -> Metric:
        """The score of ``methods`` over ``statistics``."""
        key = (id(statistics), type(methods.score).__name__)
        if key not in self._made:
            self._made[key] = (statistics, methods.score.metric(statistics))
        return self._made[key][1]


@dataclass(frozen=True)
class Solved:
    """A packed weight and its figures: plain data that depends on nothing but the inputs."""

    packed: CompressedWeight
    record: dict[str, Any]


def solve_weight(methods: Methods, weight: Tensor, statistics: Statistics, metric: Metric, seed: int) -> Solved:
    """Run the solvers of ``methods`` on ``weight`` ``[out, in]`` and pack the outcome.

    A solver that ends up further from the weight than the structure's nearest point does, in the metric, is overruled,
    and the record says so under ``fallback``.
    """
    problem = Problem(weight.float(), methods.structure, metric, statistics, seed)
    solution: Solution | None = None
    for solver in methods.solvers:
        solution = solver.solve(problem, solution)
    assert solution is not None
    error = _error(problem, solution.theta)
    nearest_error: float | None = None
    fallback: str | None = None
    if _guarded(methods):
        nearest = Nearest().solve(problem)
        nearest_error = _error(problem, nearest.theta)
        if not error <= nearest_error * (1 + 1e-6):
            fallback = f"plain rounding was nearer ({nearest_error:.3g} against {error:.3g}) and was taken"
            solution, error = nearest, nearest_error
    if statistics.tokens == 0 and methods.needs:
        fallback = "no calibration token reached it: every element counted the same"
    info = {name: value for name, value in solution.info.items() if name != "damping"}
    record = {
        "error": error,
        "error_nearest": nearest_error,
        "damping": solution.info.get("damping"),
        "tokens": statistics.tokens if methods.needs else None,
        "fallback": fallback,
        "info": info,
    }
    return Solved(solution.encode(methods.structure), record)


def _guarded(methods: Methods) -> bool:
    """Whether plain rounding overrules a worse outcome: not where it is what was asked for, nor where a solver follows
    another aim than the metric's (the random null does)."""
    if all(isinstance(solver, Nearest) for solver in methods.solvers):
        return False
    return all(getattr(solver, "guarded", True) for solver in methods.solvers)


def _error(problem: Problem, theta: Tensor) -> float:
    """Relative error in the metric, on evenly spaced rows where there are many."""
    weight = problem.weight
    delta = weight - theta
    if not bool(torch.isfinite(delta).all()):
        return float("inf")
    left = getattr(problem.metric, "left", None)
    if weight.shape[0] > _JUDGED_ROWS and (left is None or left.matrix is None) and hasattr(problem.metric, "right"):
        rows = torch.linspace(0, weight.shape[0] - 1, _JUDGED_ROWS, device=weight.device).long()
        weight, delta = weight[rows], delta[rows]
    whole = problem.metric.loss(weight)
    return problem.metric.loss(delta) / whole if whole > 0 else 0.0
