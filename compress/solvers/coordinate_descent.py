"""Coordinate descent: move one column of values at a time while the loss falls, and re-fit scales in between.

With all other columns fixed, the loss ``tr(Δ C Δᵀ)``, Δ = W − Θ, is a parabola in the values of column j. Its least allowed
value is the allowed value nearest to ``θ_j + (Δ C)_j / C_jj``, whatever the spacing. A round over the columns never raises
the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from compress.linalg.cholesky import damped
from compress.linalg.rounding import ColumnRounder
from compress.score.metric import Kron
from compress.structures.base import HasColumns, HasScales, RefitsScales

from .base import Problem, Solution, nearest_point

_BYTES = 1 << 26
"""Working memory of a least-squares fit of scales, in bytes."""


@dataclass(frozen=True)
class CoordinateDescent:
    """Cyclic coordinate descent from an earlier solver's weight, or from plain rounding.

    Attributes:
        passes: rounds over all columns, at most; it ends early when no value moves any more.
        damping: added to C's diagonal, relative to its mean, so that errors that the calibration tokens hardly see still count.
        refit: before each round, re-fit the scales of every row by least squares in the metric,
            ``A_gh = v_gᵀ C v_h, b_g = v_gᵀ C w`` with ``v_g`` the values of group g, rounded to their dtype on disk and kept
            for the rows where the loss falls.
        block: columns whose updates are gathered into one matrix product.
    """

    passes: int = 8
    damping: float = 0.01
    refit: bool = True
    block: int = 128

    needs: ClassVar[frozenset[str]] = frozenset()
    requires: ClassVar[type] = HasColumns
    score: ClassVar[str] = "activation"
    two_sided: ClassVar[bool] = True

    def solve(self, problem: Problem[HasColumns], start: Solution | None = None) -> Solution:
        """Visit the columns of ``start`` fp32 ``[out, in]`` one after the other, each replaced by its best allowed values."""
        structure, target = problem.structure, problem.target
        start = start or nearest_point(problem, target)
        if not isinstance(problem.metric, Kron):
            return start
        gram = damped(problem.metric.right.full(target.shape[1], target.device), self.damping)
        theta, parameters = start.theta, start.parameters
        before = _row_losses(target - theta, gram)
        moved = 0
        for _ in range(self.passes):
            if self.refit and isinstance(structure, HasScales):
                theta, parameters = refit_scales(target, theta, parameters, structure, gram)
            rounder = structure.column_rounder(parameters, problem.shape)
            theta, count = descend(target, theta, gram, rounder, self.block)
            moved += count
            if count == 0:
                break
        after = _row_losses(target - theta, gram)
        # Rounding errors of fp32 can make a row slightly worse.
        if not bool((after <= before * (1 + 1e-6)).all()) and not float(after.sum()) <= float(before.sum()):
            return start
        info = {**start.info, "coordinate_moves": float(moved)}
        return Solution(theta, parameters, info)


def descend(
    target: Tensor, theta: Tensor, gram: Tensor, rounder: ColumnRounder, block: int
) -> tuple[Tensor, int]:
    """One round over the columns of ``theta`` ``[out, in]`` towards ``target`` ``[out, in]``; also how many values moved.

    Everything is held transposed, ``[in, out]``, so that a column is contiguous in memory; ``gradient`` is ``C Δᵀ``.
    """
    values = theta.T.clone(memory_format=torch.contiguous_format)
    gradient = gram @ (target.T - values)
    curvature = gram.diagonal()
    nonzero = (curvature > 0).tolist()
    inverse = torch.where(curvature > 0, 1 / curvature, torch.zeros_like(curvature)).tolist()
    moved = 0
    for first in range(0, len(values), block):
        last = min(first + block, len(values))
        part, corner = gradient[first:last], gram[first:last, first:last]
        steps = torch.zeros_like(part)
        for i, j in enumerate(range(first, last)):
            if not nonzero[j]:
                continue
            rounded = rounder(torch.add(values[j], part[i], alpha=inverse[j]), j)
            torch.sub(rounded, values[j], out=steps[i])
            values[j] = rounded
            part.addr_(corner[i], steps[i], alpha=-1)
        count = int(torch.count_nonzero(steps))
        if count:
            gradient[:first].addmm_(gram[:first, first:last], steps, alpha=-1)
            gradient[last:].addmm_(gram[last:, first:last], steps, alpha=-1)
            moved += count
    return values.T.contiguous(), moved


def refit_scales(
    target: Tensor, theta: Tensor, parameters: Any, structure: HasScales, gram: Tensor
) -> tuple[Tensor, Any]:
    """``theta`` ``[out, in]`` and its parameters with re-fitted scales, for the rows where these lower the loss."""
    if isinstance(structure, RefitsScales):
        new_theta, new_parameters = structure.refit(target, theta, parameters, gram)
        better = (_row_losses(target - new_theta, gram) < _row_losses(target - theta, gram)).unsqueeze(1)
        return torch.where(better, new_theta, theta), structure.where(better, new_parameters, parameters)
    scale = structure.scales_of(parameters)
    if scale.shape[0] != theta.shape[0]:
        return theta, parameters
    factor = best_factors(target, theta, gram, scale.shape[1])
    new_theta, new_parameters = structure.rescale(theta, parameters, scale * factor)
    better = _row_losses(target - new_theta, gram) < _row_losses(target - theta, gram)
    chosen = torch.where(better.unsqueeze(1), structure.scales_of(new_parameters), scale)
    return structure.rescale(theta, parameters, chosen)


def best_factors(target: Tensor, theta: Tensor, gram: Tensor, groups: int) -> Tensor:
    """Least-squares factors for each group of each row of ``theta`` ``[out, in]``, fp32 ``[out, groups]``, 0.25 … 4."""
    out, size = theta.shape
    width = size // groups
    factors = []
    for rows in range(0, out, max(1, _BYTES // (4 * size * groups))):
        part = theta[rows : rows + max(1, _BYTES // (4 * size * groups))]
        wanted = target[rows : rows + len(part)]
        grouped = part.view(len(part), groups, width)
        # moved[r, g] = C v_g for all columns.
        moved = torch.stack([grouped[:, g] @ gram[g * width : (g + 1) * width] for g in range(groups)], 1)
        normal = (moved.view(len(part), groups, groups, width) * grouped.unsqueeze(1)).sum(-1)
        right = torch.einsum("rgi,ri->rg", moved, wanted - part)
        diagonal = normal.diagonal(dim1=1, dim2=2)
        ridge = torch.where(diagonal > 0, 1e-4 * diagonal, torch.ones_like(diagonal))
        normal = normal + torch.diag_embed(ridge)
        lower, failed = torch.linalg.cholesky_ex(normal)
        step = torch.cholesky_solve(right.unsqueeze(-1), lower).squeeze(-1)
        usable = (failed == 0).unsqueeze(1) & torch.isfinite(step)
        factors.append(torch.where(usable, 1 + step, torch.ones_like(step)).clamp(0.25, 4.0))
    return torch.cat(factors)


def _row_losses(delta: Tensor, gram: Tensor) -> Tensor:
    return ((delta @ gram) * delta).sum(1, dtype=torch.float64)
