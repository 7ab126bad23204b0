"""NF4 grid: sixteen quantiles of a Gaussian times a scale by block (QLoRA, arXiv:2305.14314, section 3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from compress_kernels.layouts import NormalFloat4
from compress_kernels.layouts.nf4 import NF4_VALUES
from torch import Tensor

from compress.linalg.value_table import ValueTable
from compress.score.metric import Metric
from compress.structures.base import CompressedWeight, HasCodes, HasElements, HasGroups, Shape
from compress.structures.scaled_table import BlockScales, TableOfValues


@dataclass(frozen=True)
class NF4Grid(TableOfValues):
    """NF4 grid, ``Θ = table[code] · scale``, as bitsandbytes reads it.

    Plain rounding takes a block's absolute maximum as its scale and gives the same codes as bitsandbytes.

    Attributes:
        group_size: number of columns that share a scale; bitsandbytes calls it the block size.
        dtype: of the model's weights, to which bitsandbytes decodes.
    """

    group_size: int = 64
    dtype: torch.dtype = field(default=torch.bfloat16)

    def layout(self, shape: Shape) -> NormalFloat4:
        """NF4 in blocks of this size; raises ``ValueError`` where they do not divide the columns."""
        layout = NormalFloat4(self.group_size, self.dtype)
        layout.specs(shape)
        return layout

    def fit(self, weight: Tensor, metric: Metric) -> BlockScales:
        """The absolute maximum of each block."""
        self.layout((weight.shape[0], weight.shape[1]))
        largest = self._split(weight).abs().amax(-1)
        return BlockScales(torch.where(largest > 0, largest, torch.ones_like(largest)))

    def encode(self, weight: Tensor, parameters: BlockScales) -> CompressedWeight:
        """Pack a weight ``[out, in]`` that lies on the grid under ``parameters``."""
        shape = (weight.shape[0], weight.shape[1])
        layout = self.layout(shape)
        return CompressedWeight(
            layout, shape, layout.encode(self.codes(weight, parameters), parameters.scale)
        )

    def table(self, like: Tensor) -> ValueTable:
        """NF4's sixteen values on the device of ``like``."""
        return ValueTable(torch.tensor(NF4_VALUES, device=like.device))


if TYPE_CHECKING:  # mypy: what solvers may require of this grid

    def _capabilities(grid: NF4Grid) -> tuple[HasElements, HasGroups, HasCodes]:
        return grid, grid, grid
