"""SparseGPT: choose the mask block by block of columns and push each column's error to the right
(arXiv:2301.00774, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from compress.linalg.conjugate_gradient import refit
from compress.score.metric import Kron
from compress.structures.base import HasColumns, Selects

from .base import Problem, Solution


@runtime_checkable
class _SparseColumns(Selects, HasColumns, Protocol):
    """Columns can be rounded one at a time, and a pattern says what is kept."""


@dataclass(frozen=True)
class SparseGPT:
    """SparseGPT: optimal-brain pruning with the inputs' Gram matrix H; kept values are rounded to the structure's grid.

    With ``(H + λI)⁻¹ = Uᵀ U``, ``U`` upper, dropping ``w_j`` costs ``w_j² / U_jj²``. At the start of a block of columns its
    mask is chosen by that cost. Column j then leaves the error ``e = (w_j − q_j) / U_jj``, which moves every later column k
    by ``−e · U_jk``. After another solver its mask is kept, and the least-squares values on it are rounded.

    Attributes:
        damping: λ relative to the mean of H's diagonal.
        block: columns whose mask is chosen at once, and whose updates are gathered into one matrix product.
        refit: steps of least squares on an earlier solver's mask, before its values are rounded.
        round: ``False`` hands on the values before rounding, to a solver that comes after.
    """

    damping: float = 0.01
    block: int = 128
    refit: int = 100
    round: bool = True

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = _SparseColumns
    score: ClassVar[str] = "activation"
    two_sided: ClassVar[bool] = True

    def solve(self, problem: Problem[_SparseColumns], start: Solution | None = None) -> Solution:
        """Prune the weight fp32 ``[out, in]`` column by column; the error of each is spread over those to come."""
        structure, weight, metric = problem.structure, problem.target, problem.metric
        assert isinstance(metric, Kron)
        everything = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
        if start is None:
            given, target = None, weight
            parameters = structure.under(weight, everything, metric)
        else:
            # The error splits into that of the best values on the mask and the distance from these to the grid.
            given = structure.mask_of(start.parameters)
            target = refit(weight, given, metric, start.theta, steps=self.refit)
            parameters = structure.under(target, given, metric)
        factor = problem.input_root(self.damping, descending=False)
        whole = structure.with_mask(parameters, everything)
        # The factor has a one for a column whose input is always zero, which would make it look expensive to drop.
        zero_input = metric.right.diagonal(weight.shape[1], weight.device) <= 0
        theta, mask = self._recursion(target, factor.root, structure, whole, zero_input, given)
        return Solution(theta, structure.with_mask(parameters, mask), {"damping": factor.damping})

    def _recursion(
        self,
        weight: Tensor,
        root: Tensor,
        structure: _SparseColumns,
        parameters: Any,
        zero_input: Tensor,
        given: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Values and mask ``[out, in]``; everything is held transposed, so that a column is contiguous in memory."""
        shape = (weight.shape[0], weight.shape[1])
        width = structure.pattern.width
        block = self.block // width * width or width
        rounder = structure.column_rounder(parameters, shape) if self.round else _unrounded
        # A copy even where the weight is stored transposed: the errors are pushed into it.
        columns = weight.T.clone(memory_format=torch.contiguous_format)
        theta = torch.empty_like(columns)
        mask = torch.empty(columns.shape, dtype=torch.bool, device=weight.device)
        if given is not None:
            mask.copy_(given.T)
        # A pattern over few columns is chosen just before them, with the errors of all earlier columns.
        choice = width if 1 < width < block else block
        for first in range(0, shape[1], block):
            last = min(first + block, shape[1])
            part, corner = columns[first:last], root[first:last, first:last]
            errors = torch.empty_like(part)
            for i in range(last - first):
                if given is None and i % choice == 0:
                    ahead = slice(i, min(i + choice, last - first))
                    cost = (part[ahead] / corner.diagonal()[ahead].unsqueeze(1)).square().T.contiguous()
                    cost.masked_fill_(zero_input[first:last][ahead], 0.0)
                    mask[first + ahead.start : first + ahead.stop] = structure.pattern.columns_block(
                        cost, first + i, shape
                    ).T
                value = rounder(part[i], first + i) * mask[first + i]
                theta[first + i] = value
                torch.sub(part[i], value, out=errors[i]).div_(corner[i, i])
                if i + 1 < last - first:
                    part[i + 1 :].addr_(corner[i, i + 1 :], errors[i], alpha=-1)
            columns[last:].addmm_(root[first:last, last:].T, errors, alpha=-1)
        return theta.T.contiguous(), mask.T.contiguous()


def _unrounded(values: Tensor, column: int) -> Tensor:
    return values
