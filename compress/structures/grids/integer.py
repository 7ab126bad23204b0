"""Integer grid: ``Θ = (q − z) · s`` with b-bit codes q, a scale and a zero point by tensor, channel or group of columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from compress_kernels.layouts import Layout, PackedInteger, PlainInteger
from compress_kernels.layouts.integer import Group, group_count
from torch import Tensor

from compress.linalg.rounding import ColumnRounder, EvenColumns, EvenlySpaced
from compress.linalg.rounding_errors import least_trial, rounding_errors
from compress.linalg.scale_search import Lattice, search
from compress.score.metric import Metric
from compress.structures.base import (
    CompressedWeight,
    HasElements,
    HasGroups,
    HasZeroPoints,
    Shape,
)

ScaleSearch = Literal["minmax", "mse", "joint"]

# Ranges below a third of the extremes were never best, at any bit width.
_CLIP_RATIOS = torch.linspace(1.0, 0.35, 66).tolist()
_TRIALS = 1 << 21
"""Scales that are tried together: 8 MB."""


@dataclass(frozen=True)
class GridParameters:
    """Scales fp32, rounded to their dtype on disk, and zero points int32, both ``[out or 1, groups]``."""

    scale: Tensor
    zero: Tensor


@dataclass(frozen=True)
class IntegerGrid:
    """Integer grid with a scale, and if asymmetric a zero point, for every group of columns of a row.

    A symmetric grid has one code more on one side. Where codes are packed, the scale takes the sign that puts a group's largest
    weight there, exactly on the outermost code; bytes, which servers multiply with 8-bit inputs, keep positive scales.

    Attributes:
        bits: of a code, 2 to 8.
        group_size: number of columns that share a scale, ``"channel"`` (all of a row) or ``"tensor"`` (all of the weight).
        symmetric: the zero point is the middle code; codes span −2^(b−1) … 2^(b−1)−1.
        scales: ``"minmax"`` spans the extremes; ``"mse"`` searches the clipped range of least squared rounding error,
            weighted by the metric's columns; ``"joint"`` searches scale and zero point together in that error
            (:mod:`compress.linalg.scale_search`).
        packed: codes are packed into words; otherwise there is one byte for each, as servers multiply them with 8-bit inputs.
        scale_dtype: dtype of the scales on disk.
        lowest_zero: the smallest zero point; 1 where the format on disk has no 0 (GPTQ's first version).
    """

    bits: int
    group_size: Group = 128
    symmetric: bool = True
    scales: ScaleSearch = "minmax"
    packed: bool = True
    scale_dtype: torch.dtype = field(default=torch.bfloat16)
    lowest_zero: int = 0

    @property
    def signed(self) -> bool:
        """Whether scales take either sign."""
        return self.symmetric and self.packed

    @property
    def top(self) -> int:
        """The highest code."""
        return (1 << self.bits) - 1

    def layout(self, shape: Shape) -> Layout:
        """Packed integers, or bytes for products with int8 inputs; raises ``ValueError`` where the groups do not divide."""
        group_count(self.group_size, shape[1])
        if not self.packed:
            return PlainInteger(self.bits, self.group_size, self.scale_dtype)
        return PackedInteger(self.bits, self.group_size, self.symmetric, self.scale_dtype)

    def fit(self, weight: Tensor, metric: Metric) -> GridParameters:
        """Scales and zero points for ``weight`` ``[out, in]`` fp32.

        Raises:
            ValueError: the group does not divide ``in``.
        """
        grouped = self._grouped(weight)
        low, high = self._extremes(grouped)
        if self.scales == "minmax":
            return self._parameters(low, high)
        importance = metric.columns(weight).clamp_min(0)
        # A group whose inputs are all zero still gets the range of least rounding error.
        importance = importance + 1e-6 * importance.mean().clamp_min(torch.finfo(torch.float32).tiny)
        costs = self._costs(importance, weight)
        if self.scales == "joint":
            return self._search_jointly(grouped, costs)
        return self._search(grouped, low, high, costs)

    def fit_to(self, weight: Tensor, costs: Tensor, near: GridParameters | None = None) -> GridParameters:
        """The scales and zero points of least ``Σ costs · error²``; see :class:`~compress.structures.base.HasColumnFits`."""
        return self._search_jointly(self._grouped(weight), self._costs(costs, weight), near)

    def joined(self, parts: Sequence[GridParameters]) -> GridParameters:
        """The parameters of rows that lie below each other."""
        return GridParameters(
            torch.cat([part.scale for part in parts]), torch.cat([part.zero for part in parts])
        )

    def project(self, weight: Tensor, parameters: GridParameters) -> Tensor:
        """The nearest values of the grid under the scales, fp32 ``[out, in]``."""
        return self.values(self.codes(weight, parameters), parameters)

    def position(self, weight: Tensor, parameters: GridParameters) -> Tensor:
        """``W/s + z`` ``[out, in]``, neither rounded nor clipped."""
        scale, zero = parameters.scale.unsqueeze(-1), parameters.zero.unsqueeze(-1)
        return (self._split(weight, parameters) / scale + zero).view(weight.shape)

    def values(self, codes: Tensor, parameters: GridParameters, factor: Tensor | None = None) -> Tensor:
        """``(codes − z) · s`` ``[out, in]``; see :class:`~compress.structures.base.HasCodes`."""
        scale = parameters.scale
        if factor is not None:
            scale = scale * factor
            scale = scale + (scale.detach().to(self.scale_dtype).float() - scale.detach())
        centred = self._split(codes, parameters) - parameters.zero.unsqueeze(-1)
        return (centred * scale.unsqueeze(-1)).view(codes.shape)

    def codes(self, weight: Tensor, parameters: GridParameters) -> Tensor:
        """The nearest unsigned codes of ``weight``, int32 ``[out, in]``."""
        scale, zero = parameters.scale.unsqueeze(-1), parameters.zero.unsqueeze(-1)
        rounded = (self._split(weight, parameters) / scale).round_().add_(zero)
        return rounded.clamp_(0, self.top).to(torch.int32).view(weight.shape)

    @property
    def rows_apart(self) -> bool:
        """Whether no two rows share a scale."""
        return self.group_size != "tensor"

    def clipped(self, parameters: GridParameters, ratios: Sequence[float]) -> list[GridParameters]:
        """The grid at other ranges: one set of parameters for each ratio."""
        scales = (stored_scale(parameters.scale * ratio, self.scale_dtype) for ratio in ratios)
        return [GridParameters(scale, parameters.zero) for scale in scales]

    def rows_of(self, parameters: GridParameters, rows: slice) -> GridParameters:
        """The parameters of some rows, where :attr:`rows_apart`."""
        return GridParameters(parameters.scale[rows], parameters.zero[rows])

    def stacked(self, several: Sequence[GridParameters], rows: int) -> GridParameters:
        """The parameters of several weights of ``rows`` rows as those of one weight, the rows below each other."""
        scale, zero = (
            torch.cat([getattr(parameters, key).expand(rows, -1) for parameters in several])
            for key in ("scale", "zero")
        )
        return GridParameters(scale, zero)

    def picked(self, several: Sequence[GridParameters], index: Tensor) -> GridParameters:
        """For each row the parameters of the set that ``index`` int64 ``[out]`` names; rows that share scales name the same."""
        if not self.rows_apart:
            return several[int(index[0])]
        rows = torch.arange(len(index), device=index.device)
        scale, zero = (
            torch.stack([getattr(parameters, key) for parameters in several]) for key in ("scale", "zero")
        )
        return GridParameters(scale[index, rows], zero[index, rows])

    def column_rounder(self, parameters: GridParameters, shape: Shape) -> ColumnRounder:
        """Rounding of single columns."""
        width = shape[1] // group_count(self.group_size, shape[1])
        scales = parameters.scale.T.contiguous()
        first = ((-parameters.zero) * parameters.scale).T.contiguous()
        last = ((self.top - parameters.zero) * parameters.scale).T.contiguous()
        return EvenColumns(scales, torch.minimum(first, last), torch.maximum(first, last), width)

    def element_rounder(self, parameters: GridParameters, shape: Shape) -> EvenlySpaced:
        """Rounding of elements in any arrangement."""
        zeros = torch.zeros(shape, device=parameters.scale.device)
        low = self.values(zeros, parameters)
        return EvenlySpaced(low, self.values(zeros + 1, parameters) - low, self.top)

    def group(self, parameters: GridParameters, index: int) -> tuple[IntegerGrid, GridParameters]:
        """The grid of one group of columns, and its parameters."""
        group = GridParameters(parameters.scale[:, index : index + 1], parameters.zero[:, index : index + 1])
        return replace(self, group_size="channel"), group

    def with_group(self, parameters: GridParameters, index: int, group: GridParameters) -> GridParameters:
        """The parameters with those of one group replaced."""
        scale, zero = parameters.scale.clone(), parameters.zero.clone()
        scale[:, index], zero[:, index] = group.scale[:, 0], group.zero[:, 0]
        return GridParameters(scale, zero)

    def where(self, condition: Tensor, new: GridParameters, old: GridParameters) -> GridParameters:
        """``new`` for the groups where ``condition`` ``[out, groups or 1]`` holds, else ``old``."""
        scale = torch.where(condition, new.scale, old.scale)
        return GridParameters(scale, torch.where(condition, new.zero, old.zero))

    def zeros_of(self, parameters: GridParameters) -> Tensor:
        """The zero points int32 ``[out or 1, groups]``."""
        return parameters.zero

    def with_zeros(self, parameters: GridParameters, zeros: Tensor) -> GridParameters:
        """The same scales with other zero points."""
        return GridParameters(parameters.scale, zeros.to(torch.int32).clamp_min(self.lowest_zero))

    def scales_of(self, parameters: GridParameters) -> Tensor:
        """The scales fp32 ``[out or 1, groups]``."""
        return parameters.scale

    def rescale(
        self, weight: Tensor, parameters: GridParameters, scale: Tensor
    ) -> tuple[Tensor, GridParameters]:
        """``weight``, which lies on the grid, with the same codes under other scales, rounded to their dtype on disk."""
        codes = self.codes(weight, parameters)
        changed = GridParameters(stored_scale(scale, self.scale_dtype), parameters.zero)
        return self.values(codes, changed), changed

    def encode(self, weight: Tensor, parameters: GridParameters) -> CompressedWeight:
        """Pack a weight ``[out, in]`` that lies on the grid under ``parameters``."""
        shape = (weight.shape[0], weight.shape[1])
        layout = self.layout(shape)
        assert isinstance(layout, PackedInteger | PlainInteger)
        tensors = layout.encode(self.codes(weight, parameters), parameters.scale, parameters.zero)
        return CompressedWeight(layout, shape, tensors)

    def _split(self, weight: Tensor, parameters: GridParameters) -> Tensor:
        """``[out, in]`` → ``[out, groups, width]``."""
        return weight.reshape(weight.shape[0], parameters.scale.shape[-1], -1)

    def _grouped(self, weight: Tensor) -> Tensor:
        """``[out, in]`` → ``[out or 1, groups, values that share a scale]``."""
        if self.group_size == "tensor":
            return weight.reshape(1, 1, -1)
        return weight.reshape(weight.shape[0], group_count(self.group_size, weight.shape[1]), -1)

    def _extremes(self, grouped: Tensor) -> tuple[Tensor, Tensor]:
        """The ends of every group's range ``[out or 1, groups]``, zero included, so that a zero stays a zero."""
        if self.symmetric and not self.signed:
            high = grouped.abs().amax(-1)
            return -high, high
        return grouped.amin(-1).clamp_max(0), grouped.amax(-1).clamp_min(0)

    def _parameters(self, low: Tensor, high: Tensor) -> GridParameters:
        """The grid that spans ``[low, high]``, both ``[out or 1, groups]``."""
        if self.signed:
            scale = torch.where(high > -low, -high, -low) / (1 << (self.bits - 1))
        else:  # both extremes of a symmetric grid then round with the same error
            scale = (high - low) / self.top
        scale = stored_scale(torch.where(scale != 0, scale, torch.ones_like(scale)), self.scale_dtype)
        if self.symmetric:
            zero = torch.full_like(scale, 1 << (self.bits - 1))
        else:
            zero = torch.round(-low / scale).clamp_(self.lowest_zero, self.top)
        return GridParameters(scale, zero.to(torch.int32))

    def _costs(self, importance: Tensor, weight: Tensor) -> Tensor:
        """Importance ``[in]`` or ``[out, in]`` by group ``[groups, width]``: those of a row where all rows have the same."""
        width = self._grouped(weight[:1]).shape[-1] if self.rows_apart else weight.numel()
        alike = importance.dim() == 1 and self.rows_apart
        return (importance if alike else importance.expand_as(weight)).reshape(-1, width)

    def _search_jointly(
        self, grouped: Tensor, costs: Tensor, near: GridParameters | None = None
    ) -> GridParameters:
        """The scales and zero points of least weighted squared error for every group."""
        around = None if near is None else (near.scale, near.zero.float())
        scale, zero = search(self._lattice, grouped, costs, around)
        return GridParameters(scale, zero.to(torch.int32) if self._lattice.whole else zero)

    @property
    def _lattice(self) -> Lattice:
        """The values that the format can store."""
        middle = 1 << (self.bits - 1) if self.symmetric else None
        return Lattice(
            self.top,
            True,
            middle,
            self.lowest_zero,
            lambda scale: stored_scale(scale, self.scale_dtype),
            self.scale_dtype,
            signed=self.signed,
        )

    def _search(self, grouped: Tensor, low: Tensor, high: Tensor, costs: Tensor) -> GridParameters:
        """The clipped range of least weighted squared error for every group.

        Args:
            grouped: the weight, fp32 ``[out or 1, groups, width]``.
            low, high: the ends of the range of its extremes, fp32 ``[out or 1, groups]``.
            costs: of squared errors, fp32 ``[groups, width]``, for every row the same, or of every row's groups.
        """
        rows, groups, width = grouped.shape
        ratios = torch.tensor(_CLIP_RATIOS, device=grouped.device).view(-1, 1, 1)
        together = max(1, _TRIALS // (len(_CLIP_RATIOS) * groups))
        best = []
        for start in range(0, rows, together):
            part = slice(start, start + together)
            trials = self._parameters(low[part] * ratios, high[part] * ratios)
            scale, zero = trials.scale.flatten(1), self._offsets(trials).flatten(1)
            own = costs if len(costs) == groups else costs[start * groups : (start + together) * groups]
            errors = rounding_errors(grouped[part].reshape(-1, width), own, scale, zero, self.top)
            best.append([least_trial(errors, each.flatten(1)) for each in (trials.scale, trials.zero)])
        found = (torch.cat(parts).view(rows, groups) for parts in zip(*best, strict=True))
        return GridParameters(*found)

    def _offsets(self, parameters: GridParameters) -> Tensor:
        """The zero points fp32, as the values have them."""
        return parameters.zero.float()


def stored_scale(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """A scale as it is read back from disk, fp32, never 0; fp16 keeps small ones as subnormal numbers."""
    limits = torch.finfo(dtype)
    smallest = limits.tiny * limits.eps if dtype == torch.float16 else limits.tiny
    size = scale.abs().to(dtype).float().clamp_min(smallest)
    return torch.where(scale < 0, -size, size)


if TYPE_CHECKING:  # mypy: what solvers may require of this grid

    def _capabilities(grid: IntegerGrid) -> tuple[HasElements, HasGroups, HasZeroPoints]:
        return grid, grid, grid
