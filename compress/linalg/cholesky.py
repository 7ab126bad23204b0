"""Cholesky factors of a damped Gram matrix, in one matrix's memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.errors import UserError
from compress.linalg.factor_cache import FactorCache
from compress.score.metric import Side

_STRIP = 1024
"""Rows that are worked on at once where a whole matrix would take a second one's memory."""
_PANEL = 256
"""Columns that are factored at once."""


def damped(matrix: Tensor, damping: float) -> Tensor:
    """A copy of ``matrix`` ``[n, n]`` with ``damping`` times the mean of its nonzero diagonal added to that diagonal."""
    matrix = matrix.clone()
    diagonal = matrix.diagonal()
    nonzero = diagonal > 0
    if bool(nonzero.any()):
        diagonal.add_(torch.where(nonzero, damping * diagonal[nonzero].mean(), torch.zeros_like(diagonal)))
    return matrix


@dataclass(frozen=True)
class InverseRoot:
    """Inverse Cholesky factor of a damped Gram matrix: upper ``U`` with ``(H + λI)⁻¹ = Uᵀ U``.

    Attributes:
        root: ``U`` fp32 ``[in, in]``, for H's columns taken in ``order``.
        order: int64 ``[in]``.
        damping: λ relative to the mean of H's nonzero diagonal, as large as the factorisation needed it.
    """

    root: Tensor
    order: Tensor
    damping: float


def inverse_root(side: Side, like: Tensor, damping: float, *, descending: bool) -> InverseRoot:
    """Inverse Cholesky factor of a side of a metric, along which GPTQ and SparseGPT push errors (arXiv:2210.17323, eq. 3).

    One Cholesky factorisation from the last column backwards gives ``H + λI = R Rᵀ`` with ``R`` upper, so that
    ``U = R⁻¹`` and no inverse of ``H`` is ever formed; all of it in one matrix's memory. λ grows tenfold only while the
    factorisation fails. Columns with a zero diagonal get a one, so that they neither move nor are moved.

    Args:
        side: ``H [n, n]``.
        like: a tensor ``[..., n]`` on the device of the result; its values are not read.
        damping: λ, relative to the mean of H's nonzero diagonal.
        descending: whether the columns are taken by falling diagonal (``act_order``), or as they stand.

    Raises:
        UserError: ``H`` is not finite.
    """
    matrix = side.full(like.shape[-1], like.device)
    order = torch.arange(len(matrix), device=matrix.device)
    if descending:
        order = torch.argsort(matrix.diagonal(), descending=True, stable=True)
    return _inverse_root(matrix, order, damping)


def shared_inverse_root(
    side: Side, like: Tensor, damping: float, *, descending: bool, factors: FactorCache
) -> InverseRoot:
    """:func:`inverse_root` of the right side of a metric, computed once for all weights that read the same inputs."""
    held = side.diagonal(like.shape[-1], like.device) if side.matrix is None else side.matrix
    return factors.get(
        held,
        ("inverse_root", damping, descending),
        lambda: inverse_root(side, like, damping, descending=descending),
    )


def _inverse_root(matrix: Tensor, order: Tensor, damping: float) -> InverseRoot:
    diagonal = matrix.diagonal()[order]
    zero = diagonal <= 0
    scale = float(diagonal[~zero].mean()) if bool((~zero).any()) else 1.0
    used = damping
    while used <= 1e4:
        root = matrix[order[:, None], order]
        root.diagonal().add_(torch.where(zero, 1.0, used * scale))
        if _factor_backwards(root):
            _invert_upper(root.triu_())
            if bool(torch.isfinite(root.diagonal()).all()):
                return InverseRoot(root, order, used)
        del root
        used = max(used * 10, 1e-8)
    raise UserError("the calibration inputs of a weight are not finite: check the checkpoint for NaN or Inf")


def _factor_backwards(matrix: Tensor) -> bool:
    """Overwrite the upper triangle of symmetric ``H [n, n]`` by ``R`` with ``H = R Rᵀ``; False if it is not definite."""
    failures = []
    for stop in range(len(matrix), 0, -_PANEL):
        start = max(0, stop - _PANEL)
        panel = matrix[:stop, start:stop]
        panel.addmm_(matrix[:stop, stop:], matrix[start:stop, stop:].T, alpha=-1)
        corner = panel[start:]
        lower, failed = torch.linalg.cholesky_ex(corner.flip(0, 1))
        failures.append(failed)
        corner.copy_(lower.flip(0, 1))
        panel[:start] = torch.linalg.solve_triangular(corner.T, panel[:start], upper=False, left=False)
    return not bool(torch.stack(failures).any())


def _invert_upper(matrix: Tensor) -> None:
    """Overwrite upper ``R [n, n]``, zero below its diagonal, by its inverse."""
    for start in range(0, len(matrix), _PANEL):
        stop = min(start + _PANEL, len(matrix))
        corner, above = matrix[start:stop, start:stop], matrix[:start, start:stop]
        part = torch.linalg.solve_triangular(corner, above, upper=True, left=False)
        for row in range(0, start, _STRIP):
            rows = slice(row, min(row + _STRIP, start))  # the inverse so far is upper: nothing left of `row`
            torch.mm(matrix[rows, row:start], part[row:], out=above[rows]).neg_()
        unit = torch.eye(stop - start, dtype=matrix.dtype, device=matrix.device)
        corner.copy_(torch.linalg.solve_triangular(corner, unit, upper=True))
