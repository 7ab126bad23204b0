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
        return (self.apply(delta) * delta).sum(1, dtype=torch.float64)

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

    It comes from one Cholesky factorisation of the reversed matrix, ``H + λI = R Rᵀ`` with ``R`` upper, so that
    ``U = R⁻¹`` and no inverse of ``H`` is ever formed. λ grows tenfold only while the factorisation fails. Dead columns (a
    zero diagonal) get a one, so that they neither move nor are moved. The factor is kept with the side: weights that
    share inputs share it.

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
    backwards = order.flip(0)
    diagonal = matrix.diagonal()[backwards]
    dead = diagonal <= 0
    scale = float(diagonal[~dead].mean()) if bool((~dead).any()) else 1.0
    used = damping
    while used <= 1e4:
        # Column by column in memory (it is symmetric), so that LAPACK works in place: a copy can be as large as a block.
        factor = matrix[backwards[:, None], backwards].mT
        factor.diagonal().add_(torch.where(dead, 1.0, used * scale))
        failed = torch.empty((), dtype=torch.int32, device=matrix.device)
        torch.linalg.cholesky_ex(factor, out=(factor, failed))
        if int(failed) == 0:
            inverse = torch.eye(len(factor), dtype=factor.dtype, device=factor.device).mT
            torch.linalg.solve_triangular(factor, inverse, upper=False, out=inverse)
            del factor
            if bool(torch.isfinite(inverse.diagonal()).all()):
                return InverseRoot(inverse.flip(0, 1), order, used)
        used = max(used * 10, 1e-8)
    raise UserError("the calibration inputs of a weight are not finite: check the checkpoint for NaN or Inf")
