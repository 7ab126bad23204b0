"""Truncation in the metric: SVD, FWSVD, ASVD, SVD-LLM and GFWSVD are this solver under one score or another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from compress.linalg.weighted_svd import as_kron, refit_left, refit_right, take_apart
from compress.score.metric import Kron, Metric, Side
from compress.structures.choices import Choice, Option, along_ranks
from compress.structures.low_rank.factors import Factored, Factors, spectrum

from .base import Problem, Solution, asymmetric_target


@dataclass(frozen=True)
class WeightedSVD:
    """The factors nearest to the weight in the score's metric; see :mod:`compress.linalg.weighted_svd`.

    Attributes:
        rounds: how often, at most, both factors are fitted anew in turn after they were rounded: it pays where they lie on a
            grid of few bits.
        asymmetric: hold the output on compressed inputs against the dense layer's on dense inputs, as SVD-LLM's update of the
            left factor on compressed inputs does (arXiv:2403.07378, section 3.3).
        damping: of that, relative to the mean of the Gram matrix's diagonal.
    """

    rounds: int = 0
    asymmetric: bool = False
    damping: float = 0.01

    requires: ClassVar[frozenset[str]] = frozenset({"weighted_svd"})
    score: ClassVar[str] = "activation"
    guarded: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"cross"}) if self.asymmetric else frozenset()

    def solve(self, problem: Problem, start: Solution | None = None) -> Solution:
        structure: Any = problem.structure
        weight, metric = problem.weight, problem.metric
        if self.asymmetric:
            weight = asymmetric_target(problem, self.damping)
        shape = (weight.shape[0], weight.shape[1])
        rank = structure.rank_of(shape)
        given, values = problem.statistics.input_factor, problem.statistics.input_values
        if structure.shared:
            assert given is not None
            assert values is not None
            factors = structure.under(weight, given[:rank], metric, values)
            return Solution(factors.dense, factors, spectrum(values, rank))
        parts = take_apart(weight, metric)
        factors = structure.stored(weight, parts, rank, metric)
        for _ in range(self.rounds):
            again = refitted(structure, weight, factors, metric)
            if metric.loss(weight - again.dense) >= metric.loss(weight - factors.dense):
                break
            factors = again
        info = spectrum(parts.values, rank)
        if parts.lifted:
            info["singular"] = (
                f"{parts.lifted} of {len(parts.values)} directions told nothing and were lifted"
            )
        return Solution(factors.dense, factors, info)

    def options(self, problem: Problem) -> list[Option]:
        """Every rank, with what truncating there loses."""
        structure: Any = problem.structure
        parts = take_apart(problem.weight, problem.metric)
        return along_ranks(parts.values, structure, problem.shape, Choice(0))


def refitted(structure: Factors, weight: Tensor, factors: Factored, metric: Metric) -> Factored:
    """Both factors fitted and rounded once more, each to the other as it is stored."""
    storage = structure.storage
    kron = as_kron(metric)
    cost = (kron.right.right_apply(factors.right.values) * factors.right.values).sum(1)
    left = storage.store(refit_left(weight, factors.right.values, metric), Kron(right=Side(cost)))
    right = storage.store(refit_right(weight, left.values, metric), Kron(right=kron.right))
    return replace(factors, left=left, right=right)
