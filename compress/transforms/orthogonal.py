"""Orthogonal matrices that a space is rotated by, kept as products of stages that are quick to apply."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from compress.transforms.hadamard import factors_of, largest_block

SMALLEST_BLOCK = 16
"""Where a width is no multiple of a larger Hadamard matrix, a random orthogonal matrix of the whole width spreads better."""


class Stage(Protocol):
    """An orthogonal matrix ``M``, in blocks along the last dimension."""

    def apply(self, x: Tensor) -> Tensor:
        """``x M`` for ``x`` ``[…, n]``, fp32 or fp64."""
        ...


@dataclass(frozen=True, eq=False)
class Signs:
    """Multiply each feature by 1 or −1, ``[n]``, repeated for every block of n."""

    values: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """``x diag(values)``."""
        blocks = x.unflatten(-1, (-1, len(self.values)))
        return (blocks * self.values.to(x)).flatten(-2)


@dataclass(frozen=True, eq=False)
class Hadamard:
    """Multiply every block of ``order`` features by a Hadamard matrix over √order, or by its transpose."""

    order: int
    transposed: bool = False

    def apply(self, x: Tensor) -> Tensor:
        """``x H / √order``, one Kronecker factor after the other."""
        factors = factors_of(self.order)
        blocks = x.unflatten(-1, (-1, *(len(factor) for factor in factors))) / math.sqrt(self.order)
        for place, factor in enumerate(factors):
            matrix = (factor.T if self.transposed else factor).to(x)
            dim = place - len(factors)
            blocks = (blocks.transpose(dim, -1) @ matrix).transpose(dim, -1)
        return blocks.reshape(x.shape)


@dataclass(frozen=True, eq=False)
class Dense:
    """Multiply every block of n features by an orthogonal ``matrix`` ``[n, n]``."""

    matrix: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """``x matrix``."""
        return (x.unflatten(-1, (-1, len(self.matrix))) @ self.matrix.to(x)).flatten(-2)


@dataclass(frozen=True, eq=False)
class Orthogonal:
    """An orthogonal matrix of ``width`` features: the product of ``stages``, the first one first.

    More features than that are rotated in runs of ``width``, all alike.

    Attributes:
        width: number of features.
        stages: the factors.
        label: in words, such as ``Hadamard 64 in 9 blocks``.
    """

    width: int
    stages: tuple[Stage, ...]
    label: str

    def apply(self, x: Tensor) -> Tensor:
        """``x Q`` for ``x`` ``[…, n]``."""
        for stage in self.stages:
            x = stage.apply(x)
        return x

    def matrix(self) -> Tensor:
        """``Q`` ``[width, width]``, fp64."""
        return self.apply(torch.eye(self.width, dtype=torch.float64))

    def then(self, matrix: Tensor, label: str) -> Orthogonal:
        """This matrix times another one ``[width, width]``."""
        return Orthogonal(self.width, (*self.stages, Dense(matrix)), label)


def random_hadamard(
    width: int, generator: torch.Generator, *, block: int | None = None, keeps_mean: bool = False
) -> Orthogonal:
    """A Hadamard matrix with random signs (QuaRot, arXiv:2404.00456, section 3), block-diagonal where the width needs it.

    Args:
        width: number of features.
        generator: draws the signs.
        block: features in a block, for formats that scale blocks; ``None`` for the largest that has a Hadamard matrix.
        keeps_mean: keep the vector of ones: ``Hᵀ D H`` with signs D, of which the first is 1, in the place of ``D H``.

    Raises:
        ValueError: ``block`` does not divide the width, or there is no Hadamard matrix of its order.
    """
    order = largest_block(width) if block is None else block
    if width % order:
        raise ValueError(f"blocks of {order} do not divide {width} features")
    if block is None and order < SMALLEST_BLOCK and order < width:
        matrix = _random_orthogonal(width, generator, keeps_mean)
        return Orthogonal(width, (Dense(matrix),), f"random orthogonal {width}")
    factors_of(order)
    signs = (torch.randint(0, 2, (width,), generator=generator) * 2 - 1).float()
    blocks = width // order
    label = f"Hadamard {order}" + (f" in {blocks} blocks" if blocks > 1 else "")
    if not keeps_mean:
        return Orthogonal(width, (Signs(signs), Hadamard(order)), label)
    signs.view(blocks, order)[:, 0] = 1
    stages = (Hadamard(order, transposed=True), Signs(signs), Hadamard(order))
    return Orthogonal(width, stages, f"{label}, keeping the mean")


def _random_orthogonal(size: int, generator: torch.Generator, keeps_mean: bool) -> Tensor:
    """A matrix ``[size, size]`` of Haar's distribution, fp64; with ``keeps_mean`` of those that keep the vector of ones."""
    inner = size - 1 if keeps_mean else size
    gaussian = torch.randn(inner, inner, generator=generator, dtype=torch.float64)
    matrix, upper = torch.linalg.qr(gaussian)
    matrix = matrix * upper.diagonal().sign()
    if not keeps_mean:
        return matrix
    basis = mean_basis(size)
    return basis @ torch.block_diag(torch.ones(1, 1, dtype=torch.float64), matrix) @ basis.T


def mean_basis(size: int) -> Tensor:
    """An orthogonal matrix ``[size, size]``, fp64, whose first column is the vector of ones over √size (Householder's)."""
    mean = torch.full((size,), size**-0.5, dtype=torch.float64)
    mean[0] -= 1
    norm = mean.norm()
    if norm == 0:
        return torch.eye(size, dtype=torch.float64)
    direction = mean / norm
    return torch.eye(size, dtype=torch.float64) - 2 * torch.outer(direction, direction)
