"""How much an error in each place of a weight costs: what "nearest" means.

A metric is two-sided, ``tr(L Δ R Δᵀ)``, with either side the identity, a diagonal or a full matrix; or it weighs each
element alone, ``Σ m_ij Δ_ij²``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compress.errors import UserError

_STRIP = 1024
"""Columns that are worked on at once where a whole matrix would take a second one's memory."""
_PANEL = 256
"""Columns that are factored at once."""


@dataclass(frozen=True)
class Side:
    """One side of a metric: the identity (``None``), a diagonal ``[n]`` or a symmetric matrix ``[n, n]``."""

    matrix: Tensor | None = None
    _memo: dict[tuple[float, bool], InverseRoot] = field(default_factory=dict, repr=False, compare=False)
    memo: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """What was worked out from the matrix, by name: weights that share inputs share it."""

    def diagonal(self, size: int, device: torch.device | str = "cpu") -> Tensor:
        """The diagonal, fp32 ``[size]``."""
        if self.matrix is None:
            return torch.ones(size, device=device)
        return self.matrix if self.matrix.ndim == 1 else self.matrix.diagonal()

    def right_apply(self, delta: Tensor) -> Tensor:
        """``Δ R`` for ``Δ [rows, n]``."""
        if self.matrix is None:
            return delta
        return delta * self.matrix if self.matrix.ndim == 1 else delta @ self.matrix

    def full(self, size: int, device: torch.device | str = "cpu") -> Tensor:
        """The side as a matrix ``[size, size]``."""
        if self.matrix is not None and self.matrix.ndim == 2:
            return self.matrix
        return torch.diag(self.diagonal(size, device))


@dataclass(frozen=True)
class Kron:
    """``tr(L Δ R Δᵀ)`` for an error ``Δ [out, in]``, left ``[out, out]`` and right ``[in, in]``."""

    left: Side = field(default_factory=Side)
    right: Side = field(default_factory=Side)

    def forget_factors(self) -> None:
        """Free the factors kept with both sides; they are made again when they are needed."""
        self.left._memo.clear()
        self.right._memo.clear()

    @property
    def rows_apart(self) -> bool:
        """Whether what one row's error costs has nothing to do with another's."""
        return self.left.matrix is None or self.left.matrix.ndim == 1

    def loss(self, delta: Tensor) -> float:
        """The cost of ``delta`` ``[out, in]``, summed in fp64."""
        return float(self.row_losses(delta).sum())

    def apply(self, delta: Tensor) -> Tensor:
        """``L Δ R``, half the gradient of the cost at ``delta`` ``[out, in]``."""
        moved = self.right.right_apply(delta)
        if self.left.matrix is None:
            return moved
        return (
            self.left.matrix @ moved if self.left.matrix.ndim == 2 else self.left.matrix.unsqueeze(1) * moved
        )

    def row_losses(self, delta: Tensor) -> Tensor:
        """The cost of each row of ``delta``, fp64 ``[out]``; they add up to :meth:`loss`."""
        left, right = self.left.matrix, self.right.matrix
        if right is None or right.ndim == 1 or not self.rows_apart:
            return (self.apply(delta) * delta).sum(1, dtype=torch.float64)
        # Strip by strip: for a product with the whole matrix the math library lays out a copy of it.
        losses = torch.zeros(delta.shape[0], dtype=torch.float64, device=delta.device)
        for start in range(0, delta.shape[1], _STRIP):
            strip = slice(start, start + _STRIP)
            losses += (delta @ right[:, strip]).mul_(delta[:, strip]).sum(1, dtype=torch.float64)
        return losses if left is None else losses * left

    def columns(self, weight: Tensor) -> Tensor:
        """How much each input column costs, fp32 ``[in]``: the right side's diagonal."""
        return self.right.diagonal(weight.shape[1], weight.device)

    def elements(self, weight: Tensor) -> Tensor:
        """How much each element costs alone, fp32 broadcastable to ``[out, in]``."""
        left = self.left.diagonal(weight.shape[0], weight.device)
        return left.unsqueeze(1) * self.columns(weight).unsqueeze(0)


@dataclass(frozen=True)
class Elementwise:
    """``Σ m_ij Δ_ij²`` for ``weight`` ``m [out, in]``, as a diagonal Fisher matrix gives it."""

    weight: Tensor

    def loss(self, delta: Tensor) -> float:
        """The cost of ``delta`` ``[out, in]``, summed in fp64."""
        return float(self.row_losses(delta).sum())

    def apply(self, delta: Tensor) -> Tensor:
        """``m Δ``, half the gradient of the cost at ``delta`` ``[out, in]``."""
        return delta * self.weight

    def row_losses(self, delta: Tensor) -> Tensor:
        """The cost of each row of ``delta``, fp64 ``[out]``."""
        return (delta.square() * self.weight).sum(1, dtype=torch.float64)

    def columns(self, weight: Tensor) -> Tensor:
        """The mean cost of each input column, fp32 ``[in]``."""
        return self.weight.mean(0)

    def elements(self, weight: Tensor) -> Tensor:
        """How much each element costs alone, fp32 ``[out, in]``."""
        return self.weight


Metric = Kron | Elementwise


def damped(matrix: Tensor, damping: float) -> Tensor:
    """A copy of ``matrix`` ``[n, n]`` with ``damping`` times the mean of its living diagonal added there; what is dead stays so."""
    matrix = matrix.clone()
    diagonal = matrix.diagonal()
    living = diagonal > 0
    if bool(living.any()):
        diagonal.add_(torch.where(living, damping * diagonal[living].mean(), torch.zeros_like(diagonal)))
    return matrix


def relative_loss(metric: Metric, delta: Tensor, weight: Tensor) -> float:
    """``loss(Δ) / loss(W)``: 0 for no error, 1 for a weight lost altogether; 0 where the weight costs nothing."""
    whole = metric.loss(weight)
    return metric.loss(delta) / whole if whole > 0 else 0.0


@dataclass(frozen=True)
class InverseRoot:
    """Upper ``U`` fp32 ``[in, in]`` with ``(H + λI)⁻¹ = Uᵀ U``, H's columns taken in ``order`` int64 ``[in]``.

    ``damping`` is λ relative to the mean of H's living diagonal, as it was needed.
    """

    root: Tensor
    order: Tensor
    damping: float


def inverse_root(side: Side, size: int, damping: float, *, descending: bool) -> InverseRoot:
    """What GPTQ and SparseGPT push errors along, for the columns in order or by falling diagonal.

    It comes from one Cholesky factorisation from the last column backwards, ``H + λI = R Rᵀ`` with ``R`` upper, so that
    ``U = R⁻¹`` and no inverse of ``H`` is ever formed; all of it in one matrix's memory. λ grows tenfold only while the
    factorisation fails. Dead columns (a zero diagonal) get a one, so that they neither move nor are moved. The factor is
    kept with the side: weights that share inputs share it.

    Raises:
        UserError: ``H`` is not finite.
    """
    key = (damping, descending)
    if key not in side._memo:
        matrix = side.full(size)
        order = torch.arange(size, device=matrix.device)
        if descending:
            order = torch.argsort(matrix.diagonal(), descending=True, stable=True)
        side._memo[key] = _inverse_root(matrix, order, damping)
    return side._memo[key]


def _inverse_root(matrix: Tensor, order: Tensor, damping: float) -> InverseRoot:
    diagonal = matrix.diagonal()[order]
    dead = diagonal <= 0
    scale = float(diagonal[~dead].mean()) if bool((~dead).any()) else 1.0
    used = damping
    while used <= 1e4:
        root = matrix[order[:, None], order]
        root.diagonal().add_(torch.where(dead, 1.0, used * scale))
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
