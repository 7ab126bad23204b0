"""One weight from dense to packed: its solvers one after the other, and plain rounding where they end up worse."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from compress.linalg.factor_cache import FactorCache
from compress.linalg.true_input import true_input_target
from compress.planning.methods import Methods
from compress.score.metric import Kron, Metric
from compress.score.statistics import Statistics
from compress.solvers.base import Problem, Solution
from compress.solvers.nearest import Nearest
from compress.structures.base import CompressedWeight, Structure

_JUDGED_ROWS = 512
"""Rows on which errors are measured: a product with the Gram matrix costs as much as a solver does."""


NOTHING_SEEN = Statistics()


@dataclass(frozen=True)
class Solved:
    """A packed weight and its figures: plain data that depends on nothing but the inputs; ``weight`` fp32 ``[out, in]`` is what
    was packed."""

    packed: CompressedWeight
    record: dict[str, Any]
    weight: Tensor


@dataclass(frozen=True)
class Attempt:
    """The result of the solvers of single weights, from which solvers of whole blocks start."""

    problem: Problem[Structure]
    solution: Solution
    record: dict[str, Any]

    def pack(self) -> Solved:
        """The solution in the structure's layout."""
        return Solved(self.solution.encode(self.problem.structure), self.record, self.problem.weight)

    def moved_to(self, solution: Solution) -> Attempt:
        """The same problem with the solution of a block solver; the error is that of the weight alone, and may rise."""
        changes = {"error": _Judge.of(self.problem).error(solution.theta), "info": _info(solution)}
        return replace(self, solution=solution, record={**self.record, **changes})


def solve_weight(
    methods: Methods,
    weight: Tensor,
    statistics: Statistics,
    metric: Metric,
    seed: int,
    factors: FactorCache | None = None,
) -> Attempt:
    """Run the solvers of ``methods`` for single weights on ``weight`` ``[out, in]``.

    A solver that ends up further from the weight than the structure's nearest point does, in the metric, is overruled,
    and the record says so under ``fallback``. ``factors`` holds what was factorised for earlier weights of the same inputs;
    without it the weight is solved alone.
    """
    factors = FactorCache() if factors is None else factors
    problem = _problem(methods, weight.float(), statistics, metric, seed, factors)
    judge = _Judge.of(problem)
    # Before the solvers: they leave factors in the cache that can take more memory than the weight.
    nearest_error = judge.nearest_error(problem) if _guarded(methods) else None
    solution: Solution | None = None
    for solver in methods.solvers:
        solution = solver.solve(problem, solution)
    assert solution is not None
    error = judge.error(solution.theta)
    fallback: str | None = None
    if nearest_error is not None and not error <= nearest_error * (1 + 1e-6):
        fallback = f"plain rounding was nearer ({nearest_error:.3g} against {error:.3g}) and was taken"
        solution, error = Nearest().solve(problem), nearest_error
    if statistics.tokens == 0 and methods.needs:
        fallback = "no calibration token reached it: every element counted the same"
    elif fallback is None and (reason_of := getattr(methods.score, "fallback", None)) is not None:
        fallback = reason_of(statistics)
    record = {
        "error": error,
        "error_nearest": nearest_error,
        "damping": solution.info.get("damping"),
        "tokens": statistics.tokens if methods.needs else None,
        "fallback": fallback,
        "info": _info(solution),
    }
    return Attempt(problem, solution, record)


def _problem(
    methods: Methods,
    weight: Tensor,
    statistics: Statistics,
    metric: Metric,
    seed: int,
    factors: FactorCache,
) -> Problem[Structure]:
    """The problem, with the true-input target where the step asks for it and the cross moment was gathered."""
    true_input = None
    cross = statistics.cross if statistics.tokens else None
    if methods.true_input_target and cross is not None and isinstance(metric, Kron):
        true_input = true_input_target(weight, cross, metric.right, factors)
    return Problem(weight, methods.structure, metric, statistics, seed, factors, true_input)


def _info(solution: Solution) -> dict[str, Any]:
    return {name: value for name, value in solution.info.items() if name != "damping"}


def _guarded(methods: Methods) -> bool:
    """Whether a worse result is replaced by plain rounding: not where that is the only solver, nor where a solver minimises
    something else than the metric (the random baseline does)."""
    if all(isinstance(solver, Nearest) for solver in methods.solvers):
        return False
    return all(getattr(solver, "guarded", True) for solver in methods.solvers)


@dataclass(frozen=True)
class _Judge:
    """Relative errors of one weight in its metric, on evenly spaced rows where there are many.

    A solver that aims at the dense outputs is held against those: ``target`` ``[rows, in]`` is what answers them best.
    """

    target: Tensor
    rows: Tensor | None
    metric: Metric
    whole: float

    @classmethod
    def of(cls, problem: Problem[Structure]) -> _Judge:
        target, rows = problem.target, None
        if (
            target.shape[0] > _JUDGED_ROWS
            and isinstance(problem.metric, Kron)
            and problem.metric.left.matrix is None
        ):
            rows = torch.linspace(0, target.shape[0] - 1, _JUDGED_ROWS, device=target.device).long()
            target = target[rows]
        return cls(target, rows, problem.metric, problem.metric.loss(target))

    def error(self, theta: Tensor) -> float:
        """``loss(target − Θ) / loss(target)`` for ``theta`` ``[out, in]``; infinite where it is not finite."""
        if not all(bool(torch.isfinite(extreme)) for extreme in theta.aminmax()):
            return float("inf")
        return self._relative(theta if self.rows is None else theta[self.rows])

    def nearest_error(self, problem: Problem[Structure]) -> float:
        """The same for the structure's nearest point, found on the judged rows alone where rows stand for themselves."""
        if self.rows is None or not getattr(problem.structure, "rows_apart", False):
            return self.error(Nearest().solve(problem).theta)
        return self._relative(Nearest().solve(replace(problem, weight=problem.weight[self.rows])).theta)

    def _relative(self, theta: Tensor) -> float:
        # Where the inputs span less than all directions, rounding can take the sum of squares below zero.
        return max(0.0, self.metric.loss(self.target - theta)) / self.whole if self.whole > 0 else 0.0
