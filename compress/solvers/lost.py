"""LOST after training: low rank plus a few whole input columns (arXiv:2508.02668), both fitted in the metric."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from compress.linalg.weighted_svd import Truncation, as_kron, double, solve_symmetric, take_apart
from compress.score.metric import Kron, Metric, Side
from compress.structures.base import StaysDense
from compress.structures.choices import Choice, Option, along_ranks
from compress.structures.low_rank.factors import Factored, spectrum
from compress.structures.low_rank.sums import FactorsAndColumns, refit_columns

from .base import Problem, Solution

_SHARES = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
"""Of the inputs, that :meth:`Lost.options` tries to keep whole."""


@dataclass(frozen=True)
class LOST:
    """Keep the columns that the components behind the truncation lean on, then refit both parts.

    The columns are ranked by their norm in the ``components`` singular components that follow the kept ones (section 3.2).
    For given columns S and a right side R both parts have their optimum in closed form: the columns can make up for
    whatever is linear in their inputs, so the factors are the truncation of the other columns in the Schur complement
    ``R_NN − R_NS R_SS⁻¹ R_SN``, and the columns solve a least-squares problem beside them. The paper's SiLU and mixing
    weight belong to training and are not used.

    Attributes:
        components: singular components that rank the columns.
    """

    components: int = 256

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = FactorsAndColumns
    score: ClassVar[str] = "activation"
    guarded: ClassVar[bool] = False

    def solve(self, problem: Problem[FactorsAndColumns], start: Solution | None = None) -> Solution:
        structure, weight, metric = problem.structure, problem.target, problem.metric
        shape = problem.shape
        rank, count = structure.rank_of(shape), structure.count(shape)
        index = self._columns(take_apart(weight, metric), rank, count, metric)
        rest = _others(index, shape[1])
        parts = take_apart(weight[:, rest], without(metric, index, rest))
        factors: Factored = structure.factors.stored(weight, _widened(parts, rest, rank), rank, metric)
        columns = refit_columns(weight - factors.dense, index, metric)
        parameters = structure.with_columns(factors, index, columns, shape)
        theta = structure.project(weight, parameters)
        info = {**spectrum(parts.values, rank), "columns": float(count)}
        return Solution(theta, parameters, info)

    def options(self, problem: Problem[FactorsAndColumns]) -> list[Option]:
        """Every rank beside no columns and beside several numbers of them, with what each loses."""
        structure, weight, metric, shape = problem.structure, problem.weight, problem.metric, problem.shape
        whole = take_apart(weight, metric)
        found = along_ranks(whole.values, structure, shape, Choice(0, 0))
        for count in sorted({max(1, int(share * shape[1])) for share in _SHARES}):
            try:
                rank = replace(structure, kept=count).rank_of(shape)
            except StaysDense:
                break
            index = self._columns(whole, rank, count, metric)
            rest = _others(index, shape[1])
            parts = take_apart(weight[:, rest], without(metric, index, rest))
            found += along_ranks(parts.values, structure, shape, Choice(0, count))
        return found

    def _columns(self, parts: Truncation, rank: int, count: int, metric: Metric) -> Tensor:
        """The ``count`` columns of the largest norm in the components behind ``rank``, int64, rising."""
        behind = slice(rank, rank + self.components)
        tail = parts.left[:, behind] @ parts.right[behind]
        cost = (as_kron(metric).left.right_apply(tail.T.float()).T * tail).sum(0)
        cost = cost * as_kron(metric).right.diagonal(tail.shape[1], tail.device)
        return cost.topk(count).indices.sort().values


def _others(index: Tensor, size: int) -> Tensor:
    """bool ``[size]``: the columns that are not at ``index``."""
    return torch.ones(size, dtype=torch.bool, device=index.device).index_fill_(0, index, False)


def without(metric: Metric, index: Tensor, rest: Tensor) -> Kron:
    """The metric on the columns ``rest`` (bool ``[in]``) where those at ``index`` are free to make up for them."""
    kron = as_kron(metric)
    if kron.right.matrix is None or kron.right.matrix.ndim == 1:
        matrix = kron.right.matrix
        return Kron(kron.left, Side(None if matrix is None else matrix[rest]))
    right = double(kron.right).full(len(rest))
    cross = right[index][:, rest]
    return Kron(
        kron.left, Side(right[rest][:, rest] - cross.T @ solve_symmetric(right[index][:, index], cross))
    )


def _widened(parts: Truncation, rest: Tensor, rank: int) -> Truncation:
    """The same for all columns, zero where they are not among ``rest``."""
    right = parts.right.new_zeros(rank, len(rest))
    right[:, rest] = parts.right[:rank]
    return Truncation(parts.left[:, :rank], right, parts.values)
