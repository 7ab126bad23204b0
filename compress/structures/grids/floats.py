"""Grids of small floats, ``Θ = element · scale``: FP8, MXFP8, MXFP4 and NVFP4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Literal

import torch
from compress_kernels.layouts import PackedFloat
from compress_kernels.layouts.floats import BLOCK, FloatGroup, by_row, rising_values
from compress_kernels.value_types import FloatType
from torch import Tensor

from compress.linalg.float_scales import (
    OUTER_TOP,
    E4M3Table,
    FloatTable,
    ScaleFormat,
    largest_scale,
    moved_scale,
    search_scales,
    stored_scale,
)
from compress.linalg.rounding import ColumnRounder, ScaledTable
from compress.score.metric import Metric
from compress.structures.base import (
    CompressedWeight,
    HasCodes,
    HasElements,
    HasGroups,
    Shape,
    SharesScale,
)


@dataclass(frozen=True)
class FloatParameters:
    """The scales of a weight.

    Attributes:
        stored: fp32 ``[scale rows, groups]``, positive values of the scales' format.
        outer: fp32 ``[1]``, by which the stored scales are divided, or ``None``.
    """

    stored: Tensor
    outer: Tensor | None = None

    @property
    def scale(self) -> Tensor:
        """What the elements are multiplied by, fp32 ``[scale rows, groups]``."""
        return self.stored if self.outer is None else self.stored / self.outer


@dataclass(frozen=True)
class FloatGrid:
    """A format of small floats with its scales.

    Attributes:
        type: ``fp8``, ``mxfp8``, ``mxfp4`` or ``nvfp4``: a key of :data:`compress_kernels.layouts.FLOAT_TYPES`.
        group_size: what shares a scale: ``"channel"`` (a row), ``"tensor"`` or ``"block"`` (128 x 128) for fp8, the format's
            number of columns for the others.
        scales: ``"minmax"`` takes a group's scale from its largest value, ``"mse"`` searches the stored scale of least
            squared rounding error, weighted by the metric's columns.
        scale_dtype: of fp8's scales on disk.
        reach: the largest absolute value of the weights that share the outer scale; of this weight alone if ``None``.
        fixed_outer: the outer scale itself, for formats that do not store one; ``None`` chooses it.
    """

    type: str
    group_size: FloatGroup
    scales: Literal["minmax", "mse"] = "mse"
    scale_dtype: torch.dtype = field(default=torch.bfloat16)
    reach: float | None = None
    fixed_outer: float | None = None

    @property
    def kind(self) -> FloatType:
        """What the type is."""
        return self._layout.kind

    @property
    def rows_apart(self) -> bool:
        """Whether no two rows share a scale."""
        return self.group_size not in ("tensor", "block")

    @property
    def form(self) -> ScaleFormat:
        """The format of the scales."""
        return self.kind.scale or self.scale_dtype

    @property
    def top(self) -> int:
        """The highest code."""
        return len(rising_values(self.kind.element)) - 1

    def reaching(self, largest: float) -> FloatGrid:
        """The grid of a weight that shares its outer scale with weights up to ``largest``."""
        return replace(self, reach=largest) if self.kind.scale == "e4m3" else self

    def layout(self, shape: Shape) -> PackedFloat:
        """Packed floats of this type and group; raises ``ValueError`` for a shape that the groups do not divide."""
        self._layout.specs(shape)
        return self._layout

    def fit(self, weight: Tensor, metric: Metric) -> FloatParameters:
        """Scales for ``weight`` ``[out, in]`` fp32.

        Raises:
            ValueError: the groups do not divide ``in``.
        """
        grid = self._layout.scale_grid((weight.shape[0], weight.shape[1]))
        outer = self._outer(weight)
        values = self._groups(weight, grid)
        largest = values.abs().amax(1)
        unit = largest if outer is None else largest * outer
        stored = largest_scale(unit, rising_values(self.kind.element)[-1], self.form)
        if self.scales == "mse":
            costs = metric.columns(weight).clamp_min(0)
            # A group whose inputs are all zero still gets the scale of least rounding error.
            costs = costs + 1e-6 * costs.mean().clamp_min(torch.finfo(torch.float32).tiny)
            spread = self._groups(costs.expand_as(weight), grid)
            stored = search_scales(values, spread, self._table(weight), stored, self.form, outer)
        return FloatParameters(stored.view(grid), outer)

    def project(self, weight: Tensor, parameters: FloatParameters) -> Tensor:
        """The nearest values of the grid under the scales, fp32 ``[out, in]``."""
        scale = self._wide(parameters, weight.shape[0])
        return (self._table(weight).nearest(self._split(weight, scale) / scale) * scale).view(weight.shape)

    def codes(self, weight: Tensor, parameters: FloatParameters) -> Tensor:
        """The nearest codes of ``weight``, int64 ``[out, in]``."""
        scale = self._wide(parameters, weight.shape[0])
        return self._table(weight).codes(self._split(weight, scale) / scale).view(weight.shape)

    def position(self, weight: Tensor, parameters: FloatParameters) -> Tensor:
        """Real-valued codes of ``weight`` ``[out, in]``, linear between neighbouring values."""
        scale = self._wide(parameters, weight.shape[0])
        return self._table(weight).position(self._split(weight, scale) / scale).view(weight.shape)

    def values(self, codes: Tensor, parameters: FloatParameters, factor: Tensor | None = None) -> Tensor:
        """The values of ``codes`` ``[out, in]``; see :class:`~compress.structures.base.HasCodes`."""
        scale = parameters.scale
        if factor is not None:
            free = scale * factor
            scale = free + (self._restored(free.detach(), parameters).scale - free.detach())
        wide = by_row(scale, self.group_size, codes.shape[0]).unsqueeze(-1)
        return (self._split(self._table(codes).at(codes), wide) * wide).view(codes.shape)

    def column_rounder(self, parameters: FloatParameters, shape: Shape) -> ColumnRounder:
        """Rounding of single columns."""
        scales = by_row(parameters.scale, self.group_size, shape[0]).T.contiguous()
        width = shape[1] // len(scales)
        table = self._table(scales)

        def round_column(values: Tensor, column: int) -> Tensor:
            scale = scales[column // width]
            return table.nearest(values / scale).mul_(scale)

        return round_column

    def element_rounder(self, parameters: FloatParameters, shape: Shape) -> ScaledTable:
        """Rounding of elements in any arrangement."""
        scale = by_row(parameters.scale, self.group_size, shape[0])
        wide = scale.repeat_interleave(shape[1] // scale.shape[1], 1)
        return ScaledTable(wide, self._table(scale))

    def scales_of(self, parameters: FloatParameters) -> Tensor:
        """The scales fp32 ``[scale rows, groups]``."""
        return parameters.scale

    def rescale(
        self, weight: Tensor, parameters: FloatParameters, scale: Tensor
    ) -> tuple[Tensor, FloatParameters]:
        """``weight``, which lies on the grid, with the same codes under other scales, rounded to their format."""
        changed = self._restored(scale, parameters)
        return self.values(self.codes(weight, parameters), changed), changed

    def where(self, condition: Tensor, new: FloatParameters, old: FloatParameters) -> FloatParameters:
        """``new`` for the groups where ``condition`` ``[out, groups or 1]`` holds, else ``old``."""
        return replace(old, stored=torch.where(condition, new.stored, old.stored))

    def clipped(self, parameters: FloatParameters, ratios: Sequence[float]) -> list[FloatParameters]:
        """The grid at other sizes: one set of scales for each ratio, those that are stored alike once."""
        trials = [self._restored(parameters.scale * ratio, parameters) for ratio in ratios]
        return _distinct(trials)

    def rows_of(self, parameters: FloatParameters, rows: slice) -> FloatParameters:
        """The scales of some rows."""
        return replace(parameters, stored=parameters.stored[rows])

    def stacked(self, several: Sequence[FloatParameters], rows: int) -> FloatParameters:
        """The scales of several weights of ``rows`` rows as those of one weight, the rows below each other."""
        wide = [by_row(parameters.stored, self.group_size, rows) for parameters in several]
        return replace(several[0], stored=torch.cat(wide))

    def picked(self, several: Sequence[FloatParameters], index: Tensor) -> FloatParameters:
        """For each row the scales of the set that ``index`` int64 ``[out]`` names; rows that share scales name the same."""
        if not self.rows_apart:
            return several[int(index[0])]
        rows = torch.arange(len(index), device=index.device)
        stored = torch.stack([parameters.stored for parameters in several])[index, rows]
        return replace(several[0], stored=stored)

    def group(self, parameters: FloatParameters, index: int) -> tuple[FloatGrid, FloatParameters]:
        """The grid of one group of columns, and its scales."""
        alone = _Group(
            self.type, self.group_size, self.scales, self.scale_dtype, self.reach, self.fixed_outer
        )
        return alone, replace(parameters, stored=parameters.stored[:, index : index + 1])

    def with_group(self, parameters: FloatParameters, index: int, group: FloatParameters) -> FloatParameters:
        """The scales with those of one group replaced."""
        stored = parameters.stored.clone()
        stored[:, index] = group.stored[:, 0]
        return replace(parameters, stored=stored)

    def encode(self, weight: Tensor, parameters: FloatParameters) -> CompressedWeight:
        """Pack a weight ``[out, in]`` that lies on the grid under ``parameters``."""
        shape = (weight.shape[0], weight.shape[1])
        layout = self.layout(shape)
        codes = self.codes(weight, parameters)
        return CompressedWeight(layout, shape, layout.encode(codes, parameters.stored, parameters.outer))

    @property
    def _layout(self) -> PackedFloat:
        return PackedFloat(self.type, self.group_size, self.scale_dtype)

    def _outer(self, weight: Tensor) -> Tensor | None:
        """What NVFP4's stored scales are divided by: it brings the largest group's scale to :data:`OUTER_TOP`."""
        if self.kind.scale != "e4m3":
            return None
        if self.fixed_outer is not None:
            return torch.tensor([self.fixed_outer], dtype=torch.float32, device=weight.device)
        largest = float(weight.abs().amax()) if self.reach is None else self.reach
        top = OUTER_TOP[self.scales] * rising_values(self.kind.element)[-1]
        bounded = min(max(largest, 1e-30), 1e30) if largest > 0 else top
        return torch.tensor([top / bounded], dtype=torch.float32, device=weight.device)

    def _restored(self, scale: Tensor, parameters: FloatParameters) -> FloatParameters:
        """The stored scales nearest to ``scale`` under the same outer scale."""
        unit = scale if parameters.outer is None else scale * parameters.outer
        return replace(parameters, stored=stored_scale(unit.float(), self.form))

    def _wide(self, parameters: FloatParameters, rows: int) -> Tensor:
        """The scales ``[out, groups, 1]``."""
        return by_row(parameters.scale, self.group_size, rows).unsqueeze(-1)

    def _split(self, weight: Tensor, scale: Tensor) -> Tensor:
        """``[out, in]`` → ``[out, groups, group]``."""
        return weight.reshape(weight.shape[0], scale.shape[1], -1)

    def _groups(self, weight: Tensor, grid: tuple[int, int]) -> Tensor:
        """``[out, in]`` → ``[scale rows · groups, values that share a scale]``; rows that a block lacks are zeros."""
        if self.group_size == "tensor":
            return weight.reshape(1, -1)
        if self.group_size != "block":
            return weight.reshape(grid[0] * grid[1], -1)
        padded = torch.nn.functional.pad(weight, (0, 0, 0, grid[0] * BLOCK - weight.shape[0]))
        return padded.view(grid[0], BLOCK, grid[1], BLOCK).transpose(1, 2).reshape(grid[0] * grid[1], -1)

    def _table(self, like: Tensor) -> FloatTable:
        return _table(self.kind.element, like.device)


@dataclass(frozen=True)
class _Group(FloatGrid):
    """One group of columns by itself: a ratio other than one moves its stored scale by one place at least."""

    def clipped(self, parameters: FloatParameters, ratios: Sequence[float]) -> list[FloatParameters]:
        """The grid at other sizes, those that are stored alike once."""
        trials = []
        for ratio in ratios:
            moved = self._restored(parameters.scale * ratio, parameters).stored
            if ratio != 1:
                next_one = moved_scale(parameters.stored, 1 if ratio > 1 else -1, self.form)
                moved = torch.where(moved == parameters.stored, next_one, moved)
            trials.append(replace(parameters, stored=moved))
        return _distinct(trials)


def _distinct(trials: Sequence[FloatParameters]) -> list[FloatParameters]:
    """Those that differ from all before."""
    kept: list[FloatParameters] = []
    for trial in trials:
        if not any(torch.equal(trial.stored, other.stored) for other in kept):
            kept.append(trial)
    return kept


@cache
def _table(element: Literal["e4m3", "e2m1"], device: torch.device) -> FloatTable:
    """The values of an element on a device."""
    values = torch.tensor(rising_values(element), device=device)
    return E4M3Table(values) if element == "e4m3" else FloatTable(values)


if TYPE_CHECKING:  # mypy: what solvers may require of this grid

    def _capabilities(grid: FloatGrid) -> tuple[HasElements, HasGroups, HasCodes, SharesScale]:
        return grid, grid, grid, grid
