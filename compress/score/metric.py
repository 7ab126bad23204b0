"""How much an error in each place of a weight costs: what "nearest" means.

A metric is two-sided, ``tr(L Δ R Δᵀ)``, with either side the identity, a diagonal or a full matrix; or it weighs each
element alone, ``Σ m_ij Δ_ij²``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

_STRIP = 256
"""Columns that are worked on at once where a whole matrix would take a second one's memory."""


@dataclass(frozen=True)
class Side:
    """One side of a metric: the identity (``None``), a diagonal ``[n]`` or a symmetric matrix ``[n, n]``."""

    matrix: Tensor | None = None

    def diagonal(self, size: int, device: torch.device | str) -> Tensor:
        """The diagonal, fp32 ``[size]``."""
        if self.matrix is None:
            return torch.ones(size, device=device)
        return self.matrix if self.matrix.ndim == 1 else self.matrix.diagonal()

    def right_apply(self, delta: Tensor) -> Tensor:
        """``Δ R`` for ``Δ [rows, n]``."""
        if self.matrix is None:
            return delta
        return delta * self.matrix if self.matrix.ndim == 1 else delta @ self.matrix

    def full(self, size: int, device: torch.device | str) -> Tensor:
        """The side as a matrix ``[size, size]``."""
        if self.matrix is not None and self.matrix.ndim == 2:
            return self.matrix
        return torch.diag(self.diagonal(size, device))


@dataclass(frozen=True)
class Kron:
    """``tr(L Δ R Δᵀ)`` for an error ``Δ [out, in]``, left ``[out, out]`` and right ``[in, in]``."""

    left: Side = field(default_factory=Side)
    right: Side = field(default_factory=Side)

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
        # Strip by strip: for a product with the whole matrix the math library lays out a copy of it. What lies right of a strip
        # is what lies below it, so that it is half of the products.
        losses = torch.zeros(delta.shape[0], dtype=torch.float64, device=delta.device)
        for start in range(0, delta.shape[1], _STRIP):
            strip = slice(start, start + _STRIP)
            moved = (delta[:, :start] @ right[:start, strip]).mul_(2)
            moved.addmm_(delta[:, strip], right[strip, strip])
            losses += moved.mul_(delta[:, strip]).sum(1, dtype=torch.float64)
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


def relative_loss(metric: Metric, delta: Tensor, weight: Tensor) -> float:
    """``loss(Δ) / loss(W)``: 0 for no error, 1 for a weight lost altogether; 0 where the weight costs nothing."""
    whole = metric.loss(weight)
    return metric.loss(delta) / whole if whole > 0 else 0.0
