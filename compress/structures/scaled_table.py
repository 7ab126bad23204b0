"""Scaled tables: what grids of a fixed table of values with a scale by group of columns have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from compress.linalg.rounding import ColumnRounder, ScaledTable
from compress.linalg.value_table import ValueTable
from compress.structures.base import Shape


@dataclass(frozen=True)
class BlockScales:
    """The scales of the groups, fp32 ``[out, in/group]``, positive."""

    scale: Tensor


@dataclass(frozen=True)
class TableOfValues:
    """``Θ = table[code] · scale``: rounding, codes and scales. A grid adds its table, its fit and its layout.

    Attributes:
        group_size: number of columns that share a scale.
    """

    group_size: int

    rows_apart: ClassVar[bool] = True
    """No two rows share a scale."""

    def table(self, like: Tensor) -> ValueTable:
        """The values, on the device of ``like``."""
        raise NotImplementedError

    def stored(self, scale: Tensor) -> Tensor:
        """The scales nearest to ``scale`` that can be stored."""
        return scale

    @property
    def top(self) -> int:
        """The highest code."""
        return len(self.table(torch.empty(0)).values) - 1

    def project(self, weight: Tensor, parameters: BlockScales) -> Tensor:
        """The nearest values of the table under the scales, fp32 ``[out, in]``."""
        return self._values(self.codes(weight, parameters), parameters)

    def codes(self, weight: Tensor, parameters: BlockScales) -> Tensor:
        """The nearest codes of ``weight``, int64 ``[out, in]``."""
        return self.table(weight).codes(self._normalised(weight, parameters)).view(weight.shape)

    def position(self, weight: Tensor, parameters: BlockScales) -> Tensor:
        """Real-valued codes of ``weight`` ``[out, in]``, linear between neighbouring values."""
        return self.table(weight).position(self._normalised(weight, parameters)).view(weight.shape)

    def values(self, codes: Tensor, parameters: BlockScales, factor: Tensor | None = None) -> Tensor:
        """The values of ``codes`` ``[out, in]``; see :class:`~compress.structures.base.HasCodes`."""
        scale = parameters.scale
        if factor is not None:
            free = scale * factor
            # What is stored, with the gradient of what was asked for.
            scale = free + (self.stored(free.detach()) - free.detach())
        return (self._split(self.table(codes).at(codes)) * scale.unsqueeze(-1)).view(codes.shape)

    def column_rounder(self, parameters: BlockScales, shape: Shape) -> ColumnRounder:
        """Rounding of single columns."""
        scales = parameters.scale.T.contiguous()
        table = self.table(scales)

        def round_column(values: Tensor, column: int) -> Tensor:
            scale = scales[column // self.group_size]
            return table.nearest(values / scale) * scale

        return round_column

    def element_rounder(self, parameters: BlockScales, shape: Shape) -> ScaledTable:
        """Rounding of elements in any arrangement."""
        scale = parameters.scale.repeat_interleave(self.group_size, 1)
        return ScaledTable(scale, self.table(scale))

    def group(self, parameters: BlockScales, index: int) -> tuple[Self, BlockScales]:
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
        changed = BlockScales(self.stored(scale.float().clamp_min(torch.finfo(torch.float32).tiny)))
        return self._values(self.codes(weight, parameters), changed), changed

    def clipped(self, parameters: BlockScales, ratios: Sequence[float]) -> list[BlockScales]:
        """The grid at other ranges: one set of scales for each ratio."""
        return [BlockScales(self.stored(parameters.scale * ratio)) for ratio in ratios]

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

    def _split(self, weight: Tensor) -> Tensor:
        """``[out, in]`` → ``[out, groups, group]``."""
        return weight.reshape(weight.shape[0], -1, self.group_size)

    def _normalised(self, weight: Tensor, parameters: BlockScales) -> Tensor:
        """``W / s`` ``[out, groups, group]``."""
        return self._split(weight) / parameters.scale.unsqueeze(-1)

    def _values(self, codes: Tensor, parameters: BlockScales) -> Tensor:
        values = self.table(codes).values[codes]
        return (self._split(values) * parameters.scale.unsqueeze(-1)).view(codes.shape)
