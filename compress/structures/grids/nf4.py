"""NF4 grid: sixteen quantiles of a Gaussian times a scale by block (QLoRA, arXiv:2305.14314, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from compress_kernels.layouts import NormalFloat4
from compress_kernels.layouts.nf4 import NF4_VALUES
from torch import Tensor

from compress.linalg.rounding import ScaledTable
from compress.linalg.value_table import ValueTable
from compress.score.metric import Metric
from compress.structures.base import ColumnRounder, CompressedWeight, HasCodes, HasElements, HasGroups, Shape


@dataclass(frozen=True)
class BlockScales:
    """The scales of the blocks, fp32 ``[out, in/block]``, positive."""

    scale: Tensor


@dataclass(frozen=True)
class NF4Grid:
    """NF4 grid, ``Θ = table[code] · scale``, as bitsandbytes reads it.

    Plain rounding takes a block's absolute maximum as its scale and gives the same codes as bitsandbytes.

    Attributes:
        group_size: number of columns that share a scale; bitsandbytes calls it the block size.
        dtype: of the model's weights, to which bitsandbytes decodes.
    """

    group_size: int = 64
    dtype: torch.dtype = field(default=torch.bfloat16)

    rows_apart: ClassVar[bool] = True
    """No two rows share a scale."""

    def layout(self, shape: Shape) -> NormalFloat4:
        layout = NormalFloat4(self.group_size, self.dtype)
        layout.specs(shape)
        return layout

    def fit(self, weight: Tensor, metric: Metric) -> BlockScales:
        """The absolute maximum of each block."""
        self.layout((weight.shape[0], weight.shape[1]))
        largest = self._split(weight).abs().amax(-1)
        return BlockScales(torch.where(largest > 0, largest, torch.ones_like(largest)))

    @property
    def top(self) -> int:
        """The highest code."""
        return len(NF4_VALUES) - 1

    def project(self, weight: Tensor, parameters: BlockScales) -> Tensor:
        return self._values(self.codes(weight, parameters), parameters)

    def codes(self, weight: Tensor, parameters: BlockScales) -> Tensor:
        """The nearest codes of ``weight``, int64 ``[out, in]``."""
        return _table(weight).codes(self._normalised(weight, parameters)).view(weight.shape)

    def position(self, weight: Tensor, parameters: BlockScales) -> Tensor:
        """Real-valued codes of ``weight`` ``[out, in]``, linear between neighbouring values."""
        return _table(weight).position(self._normalised(weight, parameters)).view(weight.shape)

    def values(self, codes: Tensor, parameters: BlockScales, factor: Tensor | None = None) -> Tensor:
        """The values of ``codes`` ``[out, in]``; see :class:`~compress.structures.base.HasCodes`."""
        scale = parameters.scale if factor is None else parameters.scale * factor
        return (self._split(_table(codes).at(codes)) * scale.unsqueeze(-1)).view(codes.shape)

    def column_rounder(self, parameters: BlockScales, shape: Shape) -> ColumnRounder:
        """Rounding of single columns."""
        scales = parameters.scale.T.contiguous()
        table = _table(scales)

        def round_column(values: Tensor, column: int) -> Tensor:
            scale = scales[column // self.group_size]
            return table.nearest(values / scale) * scale

        return round_column

    def element_rounder(self, parameters: BlockScales, shape: Shape) -> ScaledTable:
        """Rounding of elements in any arrangement."""
        scale = parameters.scale.repeat_interleave(self.group_size, 1)
        return ScaledTable(scale, _table(scale))

    def group(self, parameters: BlockScales, index: int) -> tuple[NF4Grid, BlockScales]:
        """The grid of one group of columns, and its scales."""
        return self, BlockScales(parameters.scale[:, index : index + 1])

    def with_group(self, parameters: BlockScales, index: int, group: BlockScales) -> BlockScales:
        """The scales with those of one group replaced."""
        scale = parameters.scale.clone()
        scale[:, index] = group.scale[:, 0]
        return BlockScales(scale)

    def where(self, condition: Tensor, new: BlockScales, old: BlockScales) -> BlockScales:
        """``new`` for the groups where ``condition`` ``[out, groups or 1]`` holds, else ``old``."""
        return BlockScales(torch.where(condition, new.scale, old.scale))

    def scales_of(self, parameters: BlockScales) -> Tensor:
        """The scales fp32 ``[out, groups]``."""
        return parameters.scale

    def rescale(self, weight: Tensor, parameters: BlockScales, scale: Tensor) -> tuple[Tensor, BlockScales]:
        """``weight``, which lies on the grid, with the same codes under other scales."""
        changed = BlockScales(scale.float().clamp_min(torch.finfo(torch.float32).tiny))
        return self._values(self.codes(weight, parameters), changed), changed

    def clipped(self, parameters: BlockScales, ratios: Sequence[float]) -> list[BlockScales]:
        """The grid at other ranges: one set of scales for each ratio."""
        return [BlockScales(parameters.scale * ratio) for ratio in ratios]

    def rows_of(self, parameters: BlockScales, rows: slice) -> BlockScales:
        """The scales of some rows."""
        return BlockScales(parameters.scale[rows])

    def stacked(self, several: Sequence[BlockScales], rows: int) -> BlockScales:
        """The scales of several weights of ``rows`` rows as those of one weight, the rows below each other."""
        return BlockScales(torch.cat([parameters.scale for parameters in several]))

    def picked(self, several: Sequence[BlockScales], index: Tensor) -> BlockScales:
        """For each row the scales of the set that ``index`` int64 ``[out]`` names."""
        rows = torch.arange(len(index), device=index.device)
        return BlockScales(torch.stack([parameters.scale for parameters in several])[index, rows])

    def encode(self, weight: Tensor, parameters: BlockScales) -> CompressedWeight:
        shape = (weight.shape[0], weight.shape[1])
        layout = self.layout(shape)
        return CompressedWeight(
            layout, shape, layout.encode(self.codes(weight, parameters), parameters.scale)
        )

    def _split(self, weight: Tensor) -> Tensor:
        """``[out, in]`` → ``[out, groups, group]``."""
        return weight.reshape(weight.shape[0], -1, self.group_size)

    def _normalised(self, weight: Tensor, parameters: BlockScales) -> Tensor:
        """``W / s`` ``[out, groups, group]``."""
        return self._split(weight) / parameters.scale.unsqueeze(-1)

    def _values(self, codes: Tensor, parameters: BlockScales) -> Tensor:
        values = _table(codes).values[codes]
        return (self._split(values) * parameters.scale.unsqueeze(-1)).view(codes.shape)


def _table(like: Tensor) -> ValueTable:
    """NF4's sixteen values on the device of ``like``."""
    return ValueTable(torch.tensor(NF4_VALUES, device=like.device))


if TYPE_CHECKING:  # mypy: what solvers may require of this grid

    def _capabilities(grid: NF4Grid) -> tuple[HasElements, HasGroups, HasCodes]:
        return grid, grid, grid
