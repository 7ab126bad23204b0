"""Masked grids: a sparsity pattern whose kept elements lie on a grid.

Dropped elements are not stored, so that the pattern is exact whatever the codes are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from compress_kernels.layouts import Layout, PackedInteger, SparseBitmask, SparseNM
from torch import Tensor

from compress.linalg.rounding import ColumnRounder, ElementRounder
from compress.score.metric import Metric
from compress.structures.base import (
    CompressedWeight,
    HasColumns,
    HasElements,
    HasScales,
    HasZeroPoints,
    Selects,
    Shape,
    SparsityPattern,
)


class CodedGrid(HasColumns, HasElements, HasZeroPoints, Protocol):
    """A grid that a mask can lie over: evenly spaced codes, one of which is zero."""


@dataclass(frozen=True)
class KeptOnGrid:
    """The mask of kept elements, bool ``[out, in]``, and the grid's parameters."""

    mask: Tensor
    grid: Any


@dataclass(frozen=True)
class MaskedGrid:
    """Points of ``grid`` on a ``pattern``, zero elsewhere.

    Zero is a point of the grid, so that a dense copy of the weight lies on it too: zero points are whole numbers.
    """

    pattern: SparsityPattern
    grid: CodedGrid

    @property
    def group_size(self) -> Any:
        """The grid's group of columns."""
        return getattr(self.grid, "group_size", None)

    def layout(self, shape: Shape) -> Layout:
        """How the kept codes and their places are stored; raises ``ValueError`` for a grid without packed integers."""
        values = self.grid.layout(shape)
        if not isinstance(values, PackedInteger):
            raise ValueError(f"pruned weights cannot be stored in the grid's layout {values.name}")
        return self.pattern.layout(shape, values.scale_dtype, values)

    def fit(self, weight: Tensor, metric: Metric) -> KeptOnGrid:
        """The mask of least loss when every element is counted alone, and the grid fitted to what it keeps."""
        return self.under(weight, self.pattern.choose(weight.square() * metric.elements(weight)), metric)

    def under(self, weight: Tensor, mask: Tensor, metric: Metric) -> KeptOnGrid:
        """The grid fitted to what a given mask keeps of ``weight``."""
        return KeptOnGrid(mask, self.grid.fit(weight * mask, metric))

    def mask_of(self, parameters: KeptOnGrid) -> Tensor:
        """Which elements are kept, bool ``[out, in]``."""
        return parameters.mask

    def with_mask(self, parameters: KeptOnGrid, mask: Tensor) -> KeptOnGrid:
        """The same grid under another mask, bool ``[out, in]``."""
        return KeptOnGrid(mask, parameters.grid)

    def project(self, weight: Tensor, parameters: KeptOnGrid) -> Tensor:
        """The nearest values of the grid where the weight is kept, 0 elsewhere, fp32 ``[out, in]``."""
        return self.grid.project(weight * parameters.mask, parameters.grid) * parameters.mask

    def column_rounder(self, parameters: KeptOnGrid, shape: Shape) -> ColumnRounder:
        """Rounding of single columns: grid points under the mask."""
        columns = parameters.mask.T.contiguous()
        inner = self.grid.column_rounder(parameters.grid, shape)

        def round_column(values: Tensor, column: int) -> Tensor:
            return inner(values, column) * columns[column]

        return round_column

    def element_rounder(self, parameters: KeptOnGrid, shape: Shape) -> ElementRounder:
        """Rounding of elements in any arrangement: grid points under the mask."""
        return self.grid.element_rounder(parameters.grid, shape).arranged(lambda part: part * parameters.mask)

    def scales_of(self, parameters: KeptOnGrid) -> Tensor:
        """The grid's scales fp32 ``[out or 1, groups]``."""
        return self.grid.scales_of(parameters.grid)

    def rescale(self, weight: Tensor, parameters: KeptOnGrid, scale: Tensor) -> tuple[Tensor, KeptOnGrid]:
        """``weight``, which lies on the grid, with the same codes under other scales, rounded to their dtype."""
        theta, grid = self.grid.rescale(weight, parameters.grid, scale)
        return theta * parameters.mask, KeptOnGrid(parameters.mask, grid)

    def where(self, condition: Tensor, new: KeptOnGrid, old: KeptOnGrid) -> KeptOnGrid:
        """The grid of ``new`` for the groups where ``condition`` ``[out, groups or 1]`` holds, else that of ``old``."""
        return KeptOnGrid(old.mask, self.grid.where(condition, new.grid, old.grid))

    def encode(self, weight: Tensor, parameters: KeptOnGrid) -> CompressedWeight:
        """Pack the codes of the kept elements of a weight ``[out, in]`` and their places."""
        shape = (weight.shape[0], weight.shape[1])
        layout = self.layout(shape)
        assert isinstance(layout, SparseBitmask | SparseNM)
        codes = self.grid.codes(weight, parameters.grid)
        tensors = layout.encode_codes(
            codes, self.grid.scales_of(parameters.grid), self.grid.zeros_of(parameters.grid), parameters.mask
        )
        return CompressedWeight(layout, shape, tensors)


if TYPE_CHECKING:  # mypy: what solvers may require of this structure

    def _capabilities(structure: MaskedGrid) -> tuple[HasColumns, HasElements, HasScales, Selects]:
        return structure, structure, structure, structure
