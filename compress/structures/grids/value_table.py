"""Grids of a fixed table of values: ``shift``, signed powers of two without zero, and ``rf8``, an 8-bit float.

DenseShift (arXiv:2208.09708) trains such weights from scratch; here they are a grid that any solver rounds to. A product with a
power of two is a shift, which is what the grid is for; our kernels multiply.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from compress_kernels.layouts import TableCodes
from compress_kernels.value_types import table_values
from torch import Tensor

from compress.linalg.value_table import ValueTable
from compress.score.metric import Metric
from compress.structures.base import CompressedWeight, HasCodes, HasElements, HasGroups, Shape
from compress.structures.scaled_table import BlockScales, TableOfValues

RATIOS = tuple(ratio / 16 for ratio in range(8, 25))
"""Scales that are tried, in units of a group's largest value: half of it to one and a half."""


@dataclass(frozen=True)
class TableGrid(TableOfValues):
    """``Θ = values[code] · scale``, the scale of every group searched for the least rounding error, weighted by the metric.

    Attributes:
        group_size: number of columns that share a scale.
        kind: ``shift`` or ``rf8`` (:func:`compress_kernels.value_types.table_values`).
        bits: of a code.
        dtype: in which scales are stored.
    """

    group_size: int = 128
    kind: str = "shift"
    bits: int = 4
    dtype: torch.dtype = field(default=torch.bfloat16)

    def layout(self, shape: Shape) -> TableCodes:
        """Codes of a table with scales of this group; raises ``ValueError`` where the groups do not divide."""
        layout = TableCodes(self.kind, self.bits, self.group_size, self.dtype)
        layout.specs(shape)
        return layout

    def table(self, like: Tensor) -> ValueTable:
        """The values on the device of ``like``."""
        return ValueTable(torch.tensor(table_values(self.kind, self.bits), device=like.device))

    def stored(self, scale: Tensor) -> Tensor:
        """The scales in the dtype on disk, no smaller than its smallest normal number."""
        return scale.clamp_min(torch.finfo(self.dtype).tiny).to(self.dtype).to(torch.float32)

    def fit(self, weight: Tensor, metric: Metric) -> BlockScales:
        """The scale of least squared rounding error of each group, weighted by the metric's columns."""
        self.layout((weight.shape[0], weight.shape[1]))
        values, table = self._split(weight), self.table(weight)
        costs = metric.columns(weight).clamp_min(0)
        # A group whose inputs are all zero still gets the scale of least rounding error.
        costs = self._split((costs + 1e-6 * costs.mean().clamp_min(1e-30)).expand_as(weight))
        largest = values.abs().amax(-1)
        largest = torch.where(largest > 0, largest, torch.ones_like(largest))
        best, least = self.stored(largest), torch.full_like(largest, torch.inf)
        for ratio in RATIOS:
            scale = self.stored(largest * ratio)
            rounded = table.nearest(values / scale.unsqueeze(-1)) * scale.unsqueeze(-1)
            loss = ((rounded - values).square() * costs).sum(-1)
            better = loss < least
            best, least = torch.where(better, scale, best), torch.where(better, loss, least)
        return BlockScales(best)

    def encode(self, weight: Tensor, parameters: BlockScales) -> CompressedWeight:
        """Pack a weight ``[out, in]`` that lies on the grid under ``parameters``."""
        shape = (weight.shape[0], weight.shape[1])
        layout = self.layout(shape)
        return CompressedWeight(
            layout, shape, layout.encode(self.codes(weight, parameters), parameters.scale)
        )


if TYPE_CHECKING:  # mypy: what solvers may require of this grid

    def _capabilities(grid: TableGrid) -> tuple[HasElements, HasGroups, HasCodes]:
        return grid, grid, grid
