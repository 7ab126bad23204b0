"""GPTQ: round column by column and push each column's error onto the columns that are not rounded yet (arXiv:2210.17323).

Two successors, which also correct for what the compressed blocks before have done to the inputs, are options: GPTAQ
(arXiv:2504.02692) and Qronos (arXiv:2505.11695).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from compress.linalg.cholesky import InverseRoot
from compress.linalg.column_recursion import round_columns
from compress.linalg.rounding import ColumnRounder
from compress.score.metric import Kron
from compress.structures.base import HasClipRanges, HasColumnFits, HasColumns

from .base import Problem, Solution

InputCorrection = Literal["qronos", "gptaq"]
CLIP_RATIOS = (1.0, 0.94, 0.88, 0.82, 0.76)
"""Ranges that are tried of grids that cannot be fitted to costs. A search by rounding error alone clips too much: the recursion
compensates for most rounding errors, but for no clipped outlier."""
_ELEMENTS_AT_ONCE = 3 << 20
"""Elements that go through the recursion together: fewer and longer steps, on 12 MB."""


@dataclass(frozen=True)
class GPTQ:
    """GPTQ: optimal-brain rounding with the inputs' Gram matrix H.

    :func:`compress.linalg.column_recursion.round_columns` is its eq. 3, in the factored form of its section 3.3.

    Attributes:
        damping: λ relative to the mean of H's diagonal; it grows only as far as the factorisation needs.
        act_order: round the columns of the largest inputs first, while most columns can still compensate for them. Scales are
            fitted before, in the weight's order, so that no index of groups is stored.
        block: columns whose updates are gathered into one matrix product.
        input_correction: how a step with ``true_input_target`` corrects for inputs that compression has changed. ``"qronos"``
            rounds the first column to what corrects for the changes of all inputs with the other columns held, and from
            there on solves for the rest exactly: GPTQ towards the true-input target. ``"gptaq"`` adds to the columns right of
            j what ``w_j`` alone should do, ``w_j P_jk`` with ``P = α · triu((X − C) Uᵀ, 1) · U``, ``X = E[x_dense xᵀ]`` (its
            eq. 17).
        alpha: GPTAQ's α.
        clip_ratios: ranges of the grid, relative to the fitted one, that are all tried; each row keeps the range of least
            loss after its errors were pushed on. ``(1.0,)`` is plain GPTQ. ``None``: scales and zero points of integers are
            fitted ``fits`` times instead, and other grids try :data:`CLIP_RATIOS`.
        fits: how often scales and zero points are fitted where ``clip_ratios`` is ``None``. What rounding column j costs is
            ``e_j² / U_jj²``, so the first fit is that of least ``Σ_j (w_j − q_j)² / U_jj²``; each further one is made in the
            same costs to the columns as the round before pushed them. Each row keeps the fit of least loss.
    """

    damping: float = 0.01
    act_order: bool = True
    block: int = 128
    input_correction: InputCorrection = "qronos"
    alpha: float = 0.25
    clip_ratios: tuple[float, ...] | None = None
    fits: int = 3

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = HasColumns
    score: ClassVar[str] = "activation"
    two_sided: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.input_correction not in ("gptaq", "qronos"):
            raise ValueError(f"input_correction is 'gptaq' or 'qronos', not '{self.input_correction}'")
        given = CLIP_RATIOS if self.clip_ratios is None else self.clip_ratios
        if not given or not all(0 < ratio <= 1 for ratio in given):
            raise ValueError("clip_ratios is a list of ratios above 0 and up to 1")
        if self.fits < 1:
            raise ValueError("fits is a number of 1 or more")

    def solve(self, problem: Problem[HasColumns], start: Solution | None = None) -> Solution:
        """Round the weight fp32 ``[out, in]`` column by column; the error of each is spread over those to come."""
        structure, weight = problem.structure, problem.weight
        assert isinstance(problem.metric, Kron)
        factor = problem.input_root(self.damping, descending=self.act_order)
        recursion = self._recursion(problem, factor)
        if self.clip_ratios is None and isinstance(structure, HasColumnFits):
            theta, parameters = fitted_by_row(structure, recursion, self.fits, problem.shape)
            return Solution(theta, parameters, {"damping": factor.damping})
        fitted = structure.fit(weight, problem.metric)
        ratios = CLIP_RATIOS if self.clip_ratios is None else self.clip_ratios
        if not isinstance(structure, _Clippable) or len(ratios) < 2:
            columns, _ = recursion.round(structure.column_rounder(fitted, problem.shape), 1)
            theta = torch.empty_like(weight)
            recursion.place(columns, theta)
            return Solution(theta, fitted, {"damping": factor.damping})
        ranges = structure.clipped(fitted, ratios)
        theta, parameters = best_by_row(structure, ranges, recursion, problem.shape)
        return Solution(theta, parameters, {"damping": factor.damping})

    def _recursion(self, problem: Problem[HasColumns], factor: InverseRoot) -> Recursion:
        cross = problem.statistics.cross
        plain = Recursion(problem.weight, factor.root, factor.order, self.block)
        if problem.true_input is None or cross is None:
            return plain
        if self.input_correction == "qronos":
            first = _first_column(problem, cross, int(factor.order[0]))
            return replace(plain, target=problem.true_input, first=first)
        assert isinstance(problem.metric, Kron)
        gap = cross - problem.metric.right.full(problem.shape[1], problem.weight.device)
        return replace(plain, drift=_drift(gap, factor.root, factor.order, self.alpha))


@dataclass(frozen=True)
class Recursion:
    """GPTQ's recursion over the columns of a target.

    Attributes:
        target: fp32 ``[out, in]``.
        root: the factor U, fp32 ``[in, in]``, of the columns in ``order``.
        order: in which columns are rounded, int64 ``[in]``.
        block: columns whose updates are gathered into one matrix product.
        first: the first column before it is rounded, ``[out]``, where Qronos settles it.
        drift: GPTAQ's ``P`` ``[in, in]``, strictly upper.
    """

    target: Tensor
    root: Tensor
    order: Tensor
    block: int
    first: Tensor | None = None
    drift: Tensor | None = None

    def round(self, rounder: ColumnRounder, copies: int) -> tuple[Tensor, Tensor]:
        """Round all rows under several grids at once.

        Args:
            rounder: of ``copies`` times the target's rows, one grid below the other.
            copies: the number of grids.

        Returns:
            The values ``[in, copies · out]``, columns in ``order`` (see :meth:`place`), and the losses ``[copies · out]``.
        """
        columns = self.target.T[self.order]
        if copies > 1:
            columns = columns.repeat(1, copies)
        first = None if self.first is None else self.first.repeat(copies)
        losses = round_columns(
            columns, self.root, rounder, self.order.tolist(), block=self.block, first=first, drift=self.drift
        )
        return columns, losses

    def round_apart(self, rounder: ColumnRounder) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`round` under one grid, with the columns as they were when they were rounded: ``pushed`` ``[in, out]``.

        Returns:
            The values, the pushed columns and the losses.
        """
        columns = self.target.T[self.order]
        pushed = torch.empty_like(columns)
        losses = round_columns(
            columns,
            self.root,
            rounder,
            self.order.tolist(),
            block=self.block,
            first=self.first,
            drift=self.drift,
            pushed=pushed,
        )
        return columns, pushed, losses

    @property
    def costs(self) -> Tensor:
        """What the square of a column's rounding error costs in the loss: fp32 ``[in]`` in the weight's order, ``1/U_jj²``."""
        costs = torch.empty_like(self.root[0])
        costs[self.order] = self.root.diagonal().square().reciprocal()
        return costs

    def place(self, columns: Tensor, theta: Tensor, rows: Tensor | None = None) -> None:
        """Write ``columns`` ``[in, out]`` from :meth:`round` into ``theta`` ``[out, in]``: all rows, or those of a mask."""
        if rows is None:
            theta[:, self.order] = columns.T
        else:
            chosen = rows.nonzero()
            theta[chosen, self.order] = columns[:, rows].T

    def of_rows(self, rows: slice) -> Recursion:
        """The recursion of some rows of the target; rows do not interact."""
        first = None if self.first is None else self.first[rows]
        return replace(self, target=self.target[rows], first=first)


@runtime_checkable
class _Clippable(HasColumns, HasClipRanges, Protocol):
    """Columns can be rounded under several ranges."""


def fitted_by_row(
    structure: HasColumnFits, recursion: Recursion, fits: int, shape: tuple[int, int]
) -> tuple[Tensor, Any]:
    """Fit the grid and round, again and again, and keep, row by row, what lost least."""
    theta = torch.empty(shape, device=recursion.target.device)
    parts = -(-shape[0] * shape[1] // _ELEMENTS_AT_ONCE) if structure.rows_apart else 1
    bounds = [part * shape[0] // parts for part in range(parts + 1)]
    found = [
        _fit_of(structure, recursion.of_rows(slice(*rows)), fits, theta[slice(*rows)])
        for rows in pairwise(bounds)
    ]
    return theta, found[0] if len(found) == 1 else structure.joined(found)


def _fit_of(structure: HasColumnFits, recursion: Recursion, fits: int, theta: Tensor) -> Any:
    """Fill ``theta`` ``[out, in]``; the parameters of its rows."""
    costs, weight, shape = recursion.costs, recursion.target, (theta.shape[0], theta.shape[1])
    best: Any = None
    parameters: Any = None
    least = torch.empty(0)
    for fit in range(fits):
        parameters = structure.fit_to(weight, costs, parameters)
        values, pushed, loss = recursion.round_apart(structure.column_rounder(parameters, shape))
        loss = loss if structure.rows_apart else loss.sum().expand(len(loss))
        better = None if best is None else loss < least
        recursion.place(values, theta, better)
        if better is None:
            best, least = parameters, loss
        else:
            rows = better[:, None] if structure.rows_apart else better[:1, None]
            best, least = structure.where(rows, parameters, best), torch.where(better, loss, least)
        if fit < fits - 1:
            weight = torch.empty_like(weight)
            recursion.place(pushed, weight)
    return best


def best_by_row(
    structure: _Clippable, ranges: Sequence[Any], recursion: Recursion, shape: tuple[int, int]
) -> tuple[Tensor, Any]:
    """Round under each of several ranges and keep, row by row, the one of least loss."""
    theta = torch.empty(shape, device=recursion.target.device)
    chosen = torch.zeros(shape[0], dtype=torch.int64, device=theta.device)
    parts = -(-shape[0] * shape[1] // _ELEMENTS_AT_ONCE) if structure.rows_apart else 1
    for part in range(parts):
        rows = slice(part * shape[0] // parts, (part + 1) * shape[0] // parts)
        of_part = [structure.rows_of(range_, rows) for range_ in ranges] if parts > 1 else ranges
        _best_of(structure, of_part, recursion.of_rows(rows), theta[rows], chosen[rows])
    return theta, structure.picked(ranges, chosen)


def _best_of(
    structure: _Clippable, ranges: Sequence[Any], recursion: Recursion, theta: Tensor, chosen: Tensor
) -> None:
    """Fill ``theta`` ``[out, in]`` with each row under its best range, and ``chosen`` ``[out]`` with that range's number.

    As many ranges as memory allows go through the recursion at once, which makes its steps fewer and longer.
    """
    rows, columns = recursion.target.shape
    at_once = max(1, _ELEMENTS_AT_ONCE // (rows * columns))
    least = torch.empty(0)
    for first in range(0, len(ranges), at_once):
        trials = ranges[first : first + at_once]
        rounder = structure.column_rounder(structure.stacked(trials, rows), (len(trials) * rows, columns))
        rounded, losses = recursion.round(rounder, len(trials))
        for offset, loss in enumerate(losses.split(rows)):
            values = rounded[:, offset * rows : (offset + 1) * rows]
            loss = loss if structure.rows_apart else loss.sum().expand(rows)
            better = loss < least if first + offset else None
            recursion.place(values, theta, better)
            least = loss if better is None else torch.where(better, loss, least)
            if better is not None:
                chosen[better] = first + offset
        del rounded, values


def _drift(gap: Tensor, root: Tensor, order: Tensor, alpha: float) -> Tensor:
    """GPTAQ's ``P`` ``[in, in]``, strictly upper, in ``order``; ``gap`` is ``X − C``."""
    ordered = gap[order[:, None], order]
    return ((ordered @ root.T).triu_(1) @ root).mul_(alpha)


def _first_column(problem: Problem[HasColumns], cross: Tensor, column: int) -> Tensor:
    """The best values ``[out]`` of one column with all others held (Qronos, eq. 3)."""
    weight = problem.weight
    assert isinstance(problem.metric, Kron)
    gram = problem.metric.right.full(weight.shape[1], weight.device)[:, column]
    if float(gram[column]) <= 0:
        return weight[:, column]
    return weight[:, column] + weight @ (cross[:, column] - gram) / gram[column]
