"""Sparsity patterns: unstructured, n of every m, or whole blocks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import torch
from compress_kernels.layouts import Layout, PackedInteger, SparseBitmask, SparseNM
from torch import Tensor

from compress.structures.base import Shape

_EDGE = 1e-9  # so that a sparsity of 0.3 drops 3 of 10 whatever the last bit of the product is


@dataclass(frozen=True)
class Unstructured:
    """Any elements.

    Attributes:
        sparsity: share of dropped elements, 0 to 1, rounded down to whole elements.
        scope: elements compete within a ``"row"``, each of which drops the same number, or over the whole ``"layer"``.
    """

    sparsity: float
    scope: Literal["row", "layer"] = "row"

    def __post_init__(self) -> None:
        _check_sparsity(self.sparsity)

    @property
    def width(self) -> int:
        """1: elements need no neighbours."""
        return 1

    def kept(self, shape: Shape) -> int:
        """How many elements of a weight ``[out, in]`` are kept."""
        out, columns = shape
        if self.scope == "row":
            return out * _kept_of(columns, self.sparsity)
        return _kept_of(out * columns, self.sparsity)

    def choose(self, importance: Tensor) -> Tensor:
        """The most important elements of each row, or of the whole weight, bool ``[out, in]``."""
        return self.columns_block(importance, 0, (importance.shape[0], importance.shape[1]))

    def columns_block(self, importance: Tensor, first: int, shape: Shape) -> Tensor:
        """The mask of some columns of a weight of ``shape``, from ``first`` on, bool ``[out, columns]``."""
        columns, last = shape[1], first + importance.shape[1]
        whole = self.kept(shape) // (shape[0] if self.scope == "row" else 1)
        quota = whole * last // columns - whole * first // columns
        if self.scope == "row":
            return largest(importance, quota)
        return largest(importance.reshape(1, -1), quota).view(importance.shape)

    def layout(self, shape: Shape, dtype: torch.dtype, grid: PackedInteger | None = None) -> Layout:
        """A mask of bits, and the kept values in ``dtype`` or as codes of ``grid``."""
        return SparseBitmask(self.kept(shape), grid, dtype)


@dataclass(frozen=True)
class NM:
    """``n`` kept of every ``m`` neighbouring columns of a row, as sparse tensor cores take it (2:4)."""

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise ValueError(f"a pattern n:m has 0 < n < m, not {self.n}:{self.m}")

    @property
    def width(self) -> int:
        """m: the columns that compete with each other."""
        return self.m

    @property
    def patterns(self) -> Tensor:
        """All patterns of ``m`` columns, bool ``[C(m, n), m]``."""
        places = torch.tensor(list(combinations(range(self.m), self.n)))
        return torch.zeros(len(places), self.m, dtype=torch.bool).scatter_(1, places, True)

    def kept(self, shape: Shape) -> int:
        """How many elements of a weight ``[out, in]`` are kept; raises ``ValueError`` where m does not divide the columns."""
        if shape[1] % self.m:
            raise ValueError(f"the pattern {self.n}:{self.m} does not divide {shape[1]} inputs")
        return shape[0] * shape[1] // self.m * self.n

    def choose(self, importance: Tensor) -> Tensor:
        """The n most important of every m neighbours in a row, bool ``[out, in]``."""
        grouped = importance.view(importance.shape[0], -1, self.m)
        return largest(grouped.reshape(-1, self.m), self.n).view(importance.shape)

    def columns_block(self, importance: Tensor, first: int, shape: Shape) -> Tensor:
        """The mask of a block of columns, bool ``[out, columns]``: groups of m do not look beyond it."""
        return self.choose(importance)

    def layout(self, shape: Shape, dtype: torch.dtype, grid: PackedInteger | None = None) -> Layout:
        """The places within every m, or a mask of bits where that is smaller, and the kept values."""
        # Indices take n·⌈log₂ m⌉ bits for every m columns, a mask m bits.
        if self.n * (self.m - 1).bit_length() > self.m:
            return SparseBitmask(self.kept(shape), grid, dtype)
        self.kept(shape)
        return SparseNM(self.n, self.m, grid, dtype)


@dataclass(frozen=True)
class Blocks:
    """Blocks of ``rows`` × ``columns`` elements, chosen over the layer; ``sparsity`` is the share of dropped blocks."""

    sparsity: float
    rows: int
    columns: int

    def __post_init__(self) -> None:
        _check_sparsity(self.sparsity)
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"a block has at least one row and one column, not {self.rows} × {self.columns}")

    @property
    def width(self) -> int:
        """The columns of a block."""
        return self.columns

    def kept(self, shape: Shape) -> int:
        """How many elements of a weight ``[out, in]`` are kept; raises ``ValueError`` where the blocks do not divide it."""
        if shape[0] % self.rows or shape[1] % self.columns:
            raise ValueError(
                f"blocks of {self.rows} × {self.columns} do not divide a weight of {list(shape)}"
            )
        return self._blocks(shape) * self.rows * self.columns

    def choose(self, importance: Tensor) -> Tensor:
        """The blocks whose importance sums highest, as a mask bool ``[out, in]``."""
        return self.columns_block(importance, 0, (importance.shape[0], importance.shape[1]))

    def columns_block(self, importance: Tensor, first: int, shape: Shape) -> Tensor:
        """The mask of some columns of a weight of ``shape``, from ``first`` on, bool ``[out, columns]``."""
        out, width = importance.shape
        blocks = importance.view(out // self.rows, self.rows, width // self.columns, self.columns).sum((1, 3))
        whole, last = self._blocks(shape), first + width
        quota = whole * last // shape[1] - whole * first // shape[1]
        mask = largest(blocks.reshape(1, -1), quota).view(blocks.shape)
        return mask.repeat_interleave(self.rows, 0).repeat_interleave(self.columns, 1)

    def layout(self, shape: Shape, dtype: torch.dtype, grid: PackedInteger | None = None) -> Layout:
        """A mask of bits, and the kept values in ``dtype`` or as codes of ``grid``."""
        return SparseBitmask(self.kept(shape), grid, dtype)

    def _blocks(self, shape: Shape) -> int:
        return _kept_of(shape[0] // self.rows * (shape[1] // self.columns), self.sparsity)


def largest(values: Tensor, count: int) -> Tensor:
    """Mask of the ``count`` largest of each row of ``values`` ``[rows, n]``, bool ``[rows, n]``."""
    mask = torch.zeros(values.shape, dtype=torch.bool, device=values.device)
    if count >= values.shape[1]:
        return mask.fill_(True)
    if count <= 0:
        return mask
    if values.device.type == "cpu" and values.dtype == torch.float32:
        # A third of the time of topk. Where two values are equal, or one is no number, more or fewer are not below the bound.
        above = values >= _bounds(values, count)
        if bool((above.sum(1) == count).all()):
            return above
    return mask.scatter_(1, values.topk(count, dim=1, sorted=False).indices, True)


def _bounds(values: Tensor, count: int) -> Tensor:
    """The ``count``-th largest of each row, ``[rows, 1]``."""
    place = values.shape[1] - count
    return torch.from_numpy(np.partition(values.detach().numpy(), place, axis=1)[:, place : place + 1])


def _kept_of(total: int, sparsity: float) -> int:
    return total - int(total * sparsity + _EDGE)


def _check_sparsity(sparsity: float) -> None:
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is a share of at least 0 and below 1, not {sparsity}")
