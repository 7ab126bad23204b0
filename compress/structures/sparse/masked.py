"""Masked weights: a sparsity pattern whose kept elements are numbers of the weight's dtype."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import comb
from typing import TYPE_CHECKING, Any

import torch
from compress_kernels.layouts import Layout, SparseBitmask, SparseNM
from torch import Tensor

from compress.linalg.rounding import ColumnRounder
from compress.score.metric import Metric
from compress.structures.base import (
    CompressedWeight,
    HasColumns,
    Selects,
    Shape,
    SparsityPattern,
)

from .patterns import NM

_FEW = 70
"""Patterns of a group that can be weighed against each other: those of 4:8 and all smaller ones."""


@dataclass(frozen=True)
class Kept:
    """The mask of kept elements, bool ``[out, in]``."""

    mask: Tensor


@dataclass(frozen=True)
class Masked:
    """Numbers of ``dtype`` on a ``pattern``, zero elsewhere."""

    pattern: SparsityPattern
    dtype: torch.dtype = field(default=torch.bfloat16)

    def layout(self, shape: Shape) -> Layout:
        """How the kept values and their places are stored."""
        return self.pattern.layout(shape, self.dtype)

    @property
    def patterns(self) -> Tensor:
        """The patterns of a group of columns, bool ``[patterns, m]``.

        Raises:
            AttributeError: the pattern is not one of n of every m with few enough choices.
        """
        if not isinstance(self.pattern, NM) or comb(self.pattern.m, self.pattern.n) > _FEW:
            raise AttributeError("only n:m of few choices has patterns to choose from")
        return self.pattern.patterns

    def fit(self, weight: Tensor, metric: Metric) -> Kept:
        """The mask of least loss when every element is counted alone."""
        return Kept(self.pattern.choose(weight.square() * metric.elements(weight)))

    def under(self, weight: Tensor, mask: Tensor, metric: Metric) -> Kept:
        """The parameters for a given mask."""
        return Kept(mask)

    def mask_of(self, parameters: Kept) -> Tensor:
        """Which elements are kept, bool ``[out, in]``."""
        return parameters.mask

    def with_mask(self, parameters: Kept, mask: Tensor) -> Kept:
        """The parameters of another mask, bool ``[out, in]``."""
        return Kept(mask)

    def project(self, weight: Tensor, parameters: Kept) -> Tensor:
        """The weight rounded to the dtype on disk where it is kept, 0 elsewhere, ``[out, in]``."""
        return weight.to(self.dtype).to(weight.dtype) * parameters.mask

    def column_rounder(self, parameters: Kept, shape: Shape) -> ColumnRounder:
        """Rounding of single columns: numbers of the dtype under the mask."""
        columns = parameters.mask.T.contiguous()

        def round_column(values: Tensor, column: int) -> Tensor:
            return values.to(self.dtype).to(values.dtype) * columns[column]

        return round_column

    def encode(self, weight: Tensor, parameters: Any) -> CompressedWeight:
        """Pack the kept values of a weight ``[out, in]`` and their places."""
        shape = (weight.shape[0], weight.shape[1])
        layout = self.layout(shape)
        assert isinstance(layout, SparseBitmask | SparseNM)
        return CompressedWeight(layout, shape, layout.encode(weight, parameters.mask))


if TYPE_CHECKING:  # mypy: what solvers may require of this structure

    def _capabilities(structure: Masked) -> tuple[HasColumns, Selects]:
        return structure, structure
