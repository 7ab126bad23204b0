"""SparseGPT: choose a mask stretch by stretch of columns and push each column's error onto those to its right
(arXiv:2301.00774, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from compress.linalg.conjugate_gradient import refit
from compress.score.metric import Kron

from .base import Problem, Solution, asymmetric_target


@dataclass(frozen=True)
class SparseGPT:
    """Optimal-brain pruning with the inputs' Gram matrix, rounding what is kept to the structure's grid on the way.

    With ``(H + λI)⁻¹ = Uᵀ U``, ``U`` upper, leaving out ``w_j`` costs ``w_j² / U_jj²``; at the start of a stretch the
    columns in it are chosen among by that cost. Going through column j leaves the error ``e = (w_j − q_j) / U_jj`` and
    moves every later column k by ``−e · U_jk``. After another solver, its mask is kept and its least-squares values
    are what is rounded.

    Attributes:
        damping: λ relative to the mean of H's diagonal.
        block: columns that are chosen among at once, and whose updates are gathered into one product.
        refit: steps of least squares on the mask of an earlier solver, before its values are rounded.
        round: leave it out to hand on the values before they are rounded: another solver has to come after.
        asymmetric: hold the output on compressed inputs against the dense layer's on dense inputs.
    """

    damping: float = 0.01
    block: int = 128
    refit: int = 100
    round: bool = True
    asymmetric: bool = False

    requires: ClassVar[frozenset[str]] = frozenset({"project", "select", "columns"})
    score: ClassVar[str] = "activation"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"cross"}) if self.asymmetric else frozenset()

    def solve(self, problem: Problem, start: Solution | None = None) -> Solution:
        if self.asymmetric:
            problem = replace(problem, weight=asymmetric_target(problem, self.damping or 0.01))
        structure: Any = problem.structure
        weight, metric = problem.weight, problem.metric
        assert isinstance(metric, Kron)
        everything = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
        if start is None:
            parameters, target = structure.under(weight, everything, metric), weight
        else:
            # The error splits: what the mask costs at best, plus the distance from those best values to the grid.
            target = refit(weight, start.parameters.mask, metric, start.theta, steps=self.refit)
            parameters = structure.under(target, start.parameters.mask, metric)
        factor = problem.input_root(self.damping, descending=False)
        given = None if start is None else start.parameters.mask
        theta, mask = self._recursion(
            target, factor.root, structure, replace(parameters, mask=everything), given
        )
        return Solution(theta, replace(parameters, mask=mask), {"damping": factor.damping})

    def _recursion(
        self, weight: Tensor, root: Tensor, structure: Any, parameters: Any, given: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Values ``[out, in]`` and mask; everything is held transposed, so that a column is one stretch of memory."""
        shape = (weight.shape[0], weight.shape[1])
        width = structure.pattern.width
        stretch = self.block // width * width or width
        rounder = structure.column_rounder(parameters, shape) if self.round else _as_it_is
        columns = weight.T.contiguous()
        theta = torch.empty_like(columns)
        mask = torch.empty(columns.shape, dtype=torch.bool, device=weight.device)
        if given is not None:
            mask.copy_(given.T)
        # A pattern within few columns is chosen where it stands, with the errors of all columns before it.
        choice = width if 1 < width < stretch else stretch
        for first in range(0, shape[1], stretch):
            last = min(first + stretch, shape[1])
            part, corner = columns[first:last], root[first:last, first:last]
            errors = torch.empty_like(part)
            for i in range(last - first):
                if given is None and i % choice == 0:
                    ahead = slice(i, min(i + choice, last - first))
                    cost = (part[ahead] / corner.diagonal()[ahead].unsqueeze(1)).square().T.contiguous()
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


def _as_it_is(values: Tensor, column: int) -> Tensor:
    return values
