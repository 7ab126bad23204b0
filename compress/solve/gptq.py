"""GPTQ: round column by column, push each column's error onto the columns not yet rounded (arXiv:2210.17323).

Two of its successors, which also make up for what the compressed blocks before have done to the inputs, are options:
GPTAQ (arXiv:2504.02692) and Qronos (arXiv:2505.11695).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from compress.metric import Kron, inverse_root
from compress.structures.base import ColumnRounder

from .base import Problem, Solution, asymmetric_target

Order = Literal["activation", "natural"]
Asymmetric = Literal["gptaq", "qronos"]


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
        asymmetric: ``"gptaq"`` adds to the columns right of j what ``w_j`` alone should do about the drift of the inputs,
            ``w_j P_jk`` with ``P = α · triu((X − C) Uᵀ, 1) · U``, ``X = E[x_dense xᵀ]`` (its eq. 17). ``"qronos"`` rounds the
            first column to what makes up for the drift of all with the others at rest, and from there on solves for the
            rest exactly: GPTQ towards the weight that answers the dense outputs best.
        alpha: GPTAQ's α.
    """

    damping: float = 0.01
    order: Order = "activation"
    block: int = 128
    asymmetric: Asymmetric | None = None
    alpha: float = 0.25

    requires: ClassVar[frozenset[str]] = frozenset({"columns"})
    score: ClassVar[str] = "activation"

    def __post_init__(self) -> None:
        if self.asymmetric not in (None, "gptaq", "qronos"):
            raise ValueError(f"asymmetric is 'gptaq' or 'qronos', not '{self.asymmetric}'")
        if self.order not in ("activation", "natural"):
            raise ValueError(f"order is 'activation' or 'natural', not '{self.order}'")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset() if self.asymmetric is None else frozenset({"cross"})

    def solve(self, problem: Problem, start: Solution | None = None) -> Solution:
        structure, weight = problem.structure, problem.weight
        assert isinstance(problem.metric, Kron)
        parameters = structure.fit(weight, problem.metric)
        descending = self.order == "activation"
        factor = inverse_root(problem.metric.right, weight.shape[1], self.damping, descending=descending)
        shape = (weight.shape[0], weight.shape[1])
        rounder = structure.column_rounder(parameters, shape)
        target, first, drift = weight, None, None
        cross = problem.statistics.cross if problem.statistics.tokens else None
        if cross is not None and self.asymmetric == "qronos":
            target = asymmetric_target(problem, self.damping)
            first = rounder(_first_column(problem, cross, int(factor.order[0])), int(factor.order[0]))
        elif cross is not None and self.asymmetric == "gptaq":
            drift = _drift(cross - problem.metric.right.full(shape[1]), factor.root, factor.order, self.alpha)
        theta = round_columns(target, factor.root, factor.order, rounder, self.block, first=first, drift=drift)
        return Solution(theta, parameters, {"damping": factor.damping})


def _drift(gap: Tensor, root: Tensor, order: Tensor, alpha: float) -> Tensor:
    """GPTAQ's ``P`` ``[in, in]``, strictly upper, in ``order``; ``gap`` is ``X − C``."""
    ordered = gap[order[:, None], order]
    return ((ordered @ root.T).triu_(1) @ root).mul_(alpha)


def _first_column(problem: Problem, cross: Tensor, column: int) -> Tensor:
    """What column ``column`` alone, ``[out]``, should be if all others stay (Qronos, eq. 3)."""
    weight = problem.weight
    assert isinstance(problem.metric, Kron)
    gram = problem.metric.right.full(weight.shape[1])[:, column]
    if float(gram[column]) <= 0:
        return weight[:, column]
    return weight[:, column] + weight @ (cross[:, column] - gram) / gram[column]


def round_columns(
    weight: Tensor,
    root: Tensor,
    order: Tensor,
    rounder: ColumnRounder,
    block: int,
    *,
    first: Tensor | None = None,
    drift: Tensor | None = None,
) -> Tensor:
    """Round ``weight`` ``[out, in]`` through the columns in ``order`` with the factor ``root`` (in that order).

    Everything is held transposed, ``[in, out]``, so that a column is one stretch of memory. ``first`` ``[out]`` is what the
    first column becomes, if that is settled already; ``drift`` ``[in, in]``, strictly upper, is GPTAQ's ``P``.
    """
    columns = weight.T[order].contiguous()
    rounded = torch.empty_like(columns)
    places = order.tolist()
    size = len(places)
    for start in range(0, size, block):
        stop = min(start + block, size)
        part = columns[start:stop]
        errors = torch.empty_like(part)
        factor = root[start:stop, start:stop]
        for i in range(stop - start):
            column = part[i]
            value = first if first is not None and start + i == 0 else rounder(column, places[start + i])
            rounded[start + i] = value
            torch.sub(column, value, out=errors[i]).div_(factor[i, i])
            if start + i + 1 < stop:
                part[i + 1 :].addr_(factor[i, i + 1 :], errors[i], alpha=-1)
                if drift is not None:
                    part[i + 1 :].addr_(drift[start + i, start + i + 1 : stop], column)
        columns[stop:].addmm_(root[start:stop, stop:].T, errors, alpha=-1)
        if drift is not None:
            columns[stop:].addmm_(drift[start:stop, stop:].T, part)
    theta = torch.empty_like(rounded)
    theta[order] = rounded
    return theta.T.contiguous()
