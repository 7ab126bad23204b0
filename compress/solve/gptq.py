"""GPTQ: round column by column, push each column's error onto the columns not yet rounded (arXiv:2210.17323)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from compress.metric import Kron, inverse_root
from compress.structures.base import ColumnRounder

from .base import Problem, Solution

Order = Literal["activation", "natural"]


@dataclass(frozen=True)
class GPTQ:
    """Optimal-brain rounding with the inputs' Gram matrix.

    With ``(H + λI)⁻¹ = Uᵀ U``, ``U`` upper, rounding column j leaves the error ``e = (w_j − q_j) / U_jj`` and moves every
    later column k by ``−e · U_jk`` (eq. 3, in the factored form of its section 3.3).

    Attributes:
        damping: λ relative to the mean of H's diagonal; it grows only as far as the factorisation needs.
        order: ``"activation"`` rounds the columns of the largest inputs first, while most columns are still free to make
            up for them. Scales are fitted before, in the weight's own order, so that no index of groups is stored.
        block: columns whose updates are gathered into one matrix product.
    """

    damping: float = 0.01
    order: Order = "activation"
    block: int = 128

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[frozenset[str]] = frozenset({"columns"})
    score: ClassVar[str] = "activation"

    def solve(self, problem: Problem, start: Solution | None = None) -> Solution:
        structure, weight = problem.structure, problem.weight
        assert isinstance(problem.metric, Kron)
        parameters = structure.fit(weight, problem.metric)
        descending = self.order == "activation"
        factor = inverse_root(problem.metric.right, weight.shape[1], self.damping, descending=descending)
        rounder = structure.column_rounder(parameters, (weight.shape[0], weight.shape[1]))
        theta = round_columns(weight, factor.root, factor.order, rounder, self.block)
        return Solution(theta, parameters, {"damping": factor.damping})


def round_columns(weight: Tensor, root: Tensor, order: Tensor, rounder: ColumnRounder, block: int) -> Tensor:
    """Round ``weight`` ``[out, in]`` through the columns in ``order`` with the factor ``root`` (in that order).

    Everything is held transposed, ``[in, out]``, so that a column is one stretch of memory.
    """
    columns = weight.T[order].contiguous()
    rounded = torch.empty_like(columns)
    places = order.tolist()
    size = len(places)
    for first in range(0, size, block):
        last = min(first + block, size)
        part = columns[first:last]
        errors = torch.empty_like(part)
        factor = root[first:last, first:last]
        for i in range(last - first):
            column = part[i]
            value = rounder(column, places[first + i])
            rounded[first + i] = value
            torch.sub(column, value, out=errors[i]).div_(factor[i, i])
            if first + i + 1 < last:
                part[i + 1 :].addr_(factor[i, i + 1 :], errors[i], alpha=-1)
        columns[last:].addmm_(root[first:last, last:].T, errors, alpha=-1)
    theta = torch.empty_like(rounded)
    theta[order] = rounded
    return theta.T.contiguous()
