"""Rounders: the nearest allowed values of elements whose order and arrangement a solver chooses.

An element rounder holds tensors of the weight's shape (a scale for each element, the lowest value, …). A solver permutes,
pads and tiles them as it does the weight, and then rounds slice by slice along the first dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from compress.linalg.value_table import ValueTable

ColumnRounder = Callable[[Tensor, int], Tensor]
"""``(values [out], column) → rounded [out]``: the nearest allowed values of one input column."""
SliceRounder = Callable[[Tensor, int], Tensor]
"""``(values […], i) → rounded […]``: the nearest allowed values of slice i along the first dimension."""


class ElementRounder(Protocol):
    """The allowed values of each element of a tensor; they may differ from element to element and need not be even."""

    def arranged(self, move: Callable[[Tensor], Tensor]) -> ElementRounder:
        """The rounder of rearranged elements.

        Args:
            move: what is done to a tensor of the elements' shape: a permutation, a selection, a reshape, padding with zeros or
                a product with a mask. Where it puts a zero, zero is the only allowed value.
        """
        ...

    def slices(self) -> SliceRounder:
        """Rounding of slices along the first dimension."""
        ...


@dataclass(frozen=True)
class EvenColumns:
    """Rounds single columns to the multiples of a scale between two ends, each fp32 ``[groups, out or 1]``.

    Attributes:
        scale: the distance of two values.
        low: the lowest multiple.
        high: the highest one.
        width: columns of a group.
    """

    scale: Tensor
    low: Tensor
    high: Tensor
    width: int

    def __call__(self, values: Tensor, column: int) -> Tensor:
        """The nearest allowed values of ``column``, ``[out]``."""
        group = column // self.width
        rounded = torch.round(values / self.scale[group]).mul_(self.scale[group])
        return torch.minimum(torch.maximum(rounded, self.low[group]), self.high[group])


@dataclass(frozen=True)
class EvenlySpaced:
    """Allowed values ``low + code · step`` with codes 0 … ``top``; ``low`` and ``step`` fp32, one for each element."""

    low: Tensor
    step: Tensor
    top: int

    def arranged(self, move: Callable[[Tensor], Tensor]) -> EvenlySpaced:
        """The rounder of the elements as ``move`` rearranges them."""
        return EvenlySpaced(move(self.low), move(self.step), self.top)

    def slices(self) -> SliceRounder:
        """``(values fp32, i)`` → the nearest allowed values of slice ``i``."""
        inverse = torch.where(self.step != 0, 1 / self.step, 0.0)

        def nearest(values: Tensor, i: int) -> Tensor:
            codes = (values - self.low[i]).mul_(inverse[i]).round_().clamp_(0, self.top)
            return torch.addcmul(self.low[i], codes, self.step[i])

        return nearest


@dataclass(frozen=True)
class ScaledTable:
    """Allowed values ``scale · table[code]``: ``scale`` fp32, not negative, one for each element."""

    scale: Tensor
    table: ValueTable

    def arranged(self, move: Callable[[Tensor], Tensor]) -> ScaledTable:
        """The rounder of the elements as ``move`` rearranges them."""
        return ScaledTable(move(self.scale), self.table)

    def slices(self) -> SliceRounder:
        """``(values fp32, i)`` → the nearest allowed values of slice ``i``."""
        inverse = torch.where(self.scale > 0, 1 / self.scale, 0.0)

        def nearest(values: Tensor, i: int) -> Tensor:
            return self.table.nearest(values * inverse[i]) * self.scale[i]

        return nearest
