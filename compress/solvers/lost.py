"""LOST: low rank plus a few whole input columns (arXiv:2508.02668), both fitted in the metric after training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from compress.linalg.weighted_svd import Truncation, as_kron, decompose, double, solve_symmetric
from compress.score.metric import Kron, Metric, Side
from compress.structures.base import StaysDense
from compress.structures.choices import Choice, Option, along_ranks
from compress.structures.low_rank.factors import Factored, spectrum
from compress.structures.low_rank.sums import FactorsAndColumns, refit_columns

from .base import Problem, Solution

_SHARES = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
"""Shares of the inputs that :meth:`LOST.options` tries as whole columns."""


@dataclass(frozen=True)
class LOST:
    """LOST: keep the columns with most weight in the truncated singular components, then fit both parts.

    Columns are ranked by their norm in the ``components`` singular components that follow the kept ones (section 3.2). For
    given columns S and right side R both parts have a closed form: the columns compensate for anything linear in their
    inputs, so the factors are the truncation of the other columns N in the Schur complement ``R_NN − R_NS R_SS⁻¹ R_SN``, and
    the columns solve least squares on the residual of the factors. The paper's SiLU and mixing weight belong to training and
    are not used.

    Attributes:
        components: number of singular components that rank the columns.
    """

    components: int = 256

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = FactorsAndColumns
    score: ClassVar[str] = "activation"
    guarded: ClassVar[bool] = False

    def solve(self, problem: Problem[FactorsAndColumns], start: Solution | None = None) -> Solution:
        """Choose the kept columns of the weight fp32 ``[out, in]`` and fit factors to the rest; ``start`` is not read."""
        structure, weight, metric = problem.structure, problem.target, problem.metric
        shape = problem.shape
        rank, count = structure.rank_of(shape), structure.count(shape)
        index = self._columns(decompose(weight, metric), rank, count, metric)
        rest = _others(index, shape[1])
        parts = decompose(weight[:, rest], schur_complement(metric, index, rest))
        factors: Factored = structure.factors.stored(weight, _widened(parts, rest, rank), rank, metric)
        columns = refit_columns(weight - factors.dense, index, metric)
        parameters = structure.with_columns(factors, index, columns, shape)
        theta = structure.project(weight, parameters)
        info = {**spectrum(parts.values, rank), "columns": float(count)}
        return Solution(theta, parameters, info)

    def options(self, problem: Problem[FactorsAndColumns]) -> list[Option]:
        """Every rank with no columns and with several numbers of them, and the loss of each."""
        structure, weight, metric, shape = problem.structure, problem.weight, problem.metric, problem.shape
        whole = decompose(weight, metric)
        options = along_ranks(whole.values, structure, shape, Choice(0, 0))
        for count in sorted({max(1, int(share * shape[1])) for share in _SHARES}):
            try:
                rank = replace(structure, kept=count).rank_of(shape)
            except StaysDense:
                break
            index = self._columns(whole, rank, count, metric)
            rest = _others(index, shape[1])
            parts = decompose(weight[:, rest], schur_complement(metric, index, rest))
            options += along_ranks(parts.values, structure, shape, Choice(0, count))
        return options

    def _columns(self, parts: Truncation, rank: int, count: int, metric: Metric) -> Tensor:
        """The ``count`` columns of the largest norm in the components after ``rank``, int64, rising."""
        truncated = slice(rank, rank + self.components)
        tail = parts.left[:, truncated] @ parts.right[truncated]
        cost = (as_kron(metric).left.right_apply(tail.T.float()).T * tail).sum(0)
        cost = cost * as_kron(metric).right.diagonal(tail.shape[1], tail.device)
        return cost.topk(count).indices.sort().values


def _others(index: Tensor, size: int) -> Tensor:
    """The columns that are not at ``index``, bool ``[size]``."""
    return torch.ones(size, dtype=torch.bool, device=index.device).index_fill_(0, index, False)


def schur_complement(metric: Metric, index: Tensor, rest: Tensor) -> Kron:
    """The metric on the columns ``rest`` (bool ``[in]``) when those at ``index`` compensate for their errors."""
    kron = as_kron(metric)
    if kron.right.matrix is None or kron.right.matrix.ndim == 1:
        matrix = kron.right.matrix
        return Kron(kron.left, Side(None if matrix is None else matrix[rest]))
    right = double(kron.right).full(len(rest), rest.device)
    cross = right[index][:, rest]
    return Kron(
        kron.left, Side(right[rest][:, rest] - cross.T @ solve_symmetric(right[index][:, index], cross))
    )


def _widened(parts: Truncation, rest: Tensor, rank: int) -> Truncation:
    """The leading components over all columns, zero in those that are not among ``rest``."""
    right = parts.right.new_zeros(rank, len(rest))
    right[:, rest] = parts.right[:rank]
    return Truncation(parts.left[:, :rank], right, parts.values)
