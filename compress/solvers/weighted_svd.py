"""Weighted SVD: truncation in the score's metric (SVD, FWSVD, ASVD, SVD-LLM and GFWSVD, each with its score)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from compress.linalg.weighted_svd import as_kron, decompose, refit_left, refit_right
from compress.score.metric import Kron, Metric, Side
from compress.structures.choices import Choice, Option, along_ranks
from compress.structures.low_rank.factors import Factored, Factors, spectrum

from .base import Problem, Solution


@dataclass(frozen=True)
class WeightedSVD:
    """Weighted SVD: the factors nearest to the weight in the score's metric; see :mod:`compress.linalg.weighted_svd`.

    In a step with ``true_input_target`` they correct for inputs that compression has changed, as SVD-LLM's update of the left
    factor on compressed inputs does (arXiv:2403.07378, section 3.3).

    Attributes:
        rounds: how often, at most, both factors are re-fitted in turn after rounding; it pays for factors on a grid of few
            bits.
    """

    rounds: int = 0

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = Factors
    score: ClassVar[str] = "activation"
    guarded: ClassVar[bool] = False

    def solve(self, problem: Problem[Factors], start: Solution | None = None) -> Solution:
        """Factors ``[out, rank]`` and ``[rank, in]`` that lie nearest to the weight in the metric; ``start`` is not read."""
        structure, weight, metric = problem.structure, problem.target, problem.metric
        rank = structure.rank_of(problem.shape)
        given, values = problem.statistics.input_factor, problem.statistics.input_values
        if structure.shared:
            assert given is not None
            assert values is not None
            factors = structure.under(weight, given[:rank], metric, values)
            return Solution(factors.dense, factors, spectrum(values, rank))
        parts = decompose(weight, metric)
        factors = structure.stored(weight, parts, rank, metric)
        for _ in range(self.rounds):
            trial = refitted(structure, weight, factors, metric)
            if metric.loss(weight - trial.dense) >= metric.loss(weight - factors.dense):
                break
            factors = trial
        info = spectrum(parts.values, rank)
        if parts.lifted:
            info["singular"] = (
                f"{parts.lifted} of {len(parts.values)} directions had no weight and were raised"
            )
        return Solution(factors.dense, factors, info)

    def options(self, problem: Problem[Factors]) -> list[Option]:
        """Every rank, and the loss of truncating there."""
        parts = decompose(problem.weight, problem.metric)
        return along_ranks(parts.values, problem.structure, problem.shape, Choice(0))


def refitted(structure: Factors, weight: Tensor, factors: Factored, metric: Metric) -> Factored:
    """Both factors fitted and rounded once more, each to the stored values of the other."""
    storage = structure.storage
    kron = as_kron(metric)
    cost = (kron.right.right_apply(factors.right.values) * factors.right.values).sum(1)
    left = storage.store(refit_left(weight, factors.right.values, metric), Kron(right=Side(cost)))
    right = storage.store(refit_right(weight, left.values, metric), Kron(right=kron.right))
    return replace(factors, left=left, right=right)
