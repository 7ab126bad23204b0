"""The block grids of ggml as structures: what llama.cpp computes with, rounded to by the solvers themselves.

In a K-quant, 16 or 32 columns share a step and a minimum, small integers times fp16 scales of the super-block of 256
columns. A fit finds all of them by weighted search; solvers that re-fit groups then move the integers and leave the
super-block's scales alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from compress_kernels.layouts import BLOCK_TYPES, GGUFBlocks
from compress_kernels.layouts.gguf import BlockFields, block_values, group_steps
from compress_kernels.value_types import BlockType
from torch import Tensor

from compress.linalg.block_scales import BlockParameters, fit_blocks, part_factors, value_table
from compress.linalg.rounding import ColumnRounder, ElementRounder, EvenlySpaced, ScaledTable
from compress.score.metric import Metric
from compress.structures.base import (
    CompressedWeight,
    HasCodes,
    HasElements,
    HasShifts,
    RefitsScales,
    Shape,
)


@dataclass(frozen=True)
class GGUFGrid:
    """The allowed weights of one ggml type.

    Attributes:
        type: ``q4_0``, ``q4_k``, …: a key of :data:`compress_kernels.layouts.BLOCK_TYPES`.
        fallback: whether a weight whose rows are no multiple of a block gets the type that llama.cpp takes there.
    """

    type: str
    fallback: bool = False

    rows_apart: ClassVar[bool] = True
    """Each row has scales of its own."""

    @property
    def kind(self) -> BlockType:
        """The sizes of a block of this type."""
        return BLOCK_TYPES[self.type]

    def for_shape(self, shape: Shape) -> GGUFGrid:
        """The grid for a weight of ``shape``: this, or the one that llama.cpp takes where a row is no multiple of a block."""
        other = self.kind.fallback
        if not self.fallback or other is None or shape[1] % self.kind.block == 0:
            return self
        return replace(self, type=other).for_shape(shape)

    def layout(self, shape: Shape) -> GGUFBlocks:
        """Blocks of this type; raises ``ValueError`` for rows that are no whole blocks."""
        layout = GGUFBlocks(self.type)
        layout.specs(shape)
        return layout

    def fit(self, weight: Tensor, metric: Metric) -> BlockParameters:
        """Scales and minima of least rounding error in the metric's column weights."""
        self.layout((weight.shape[0], weight.shape[1]))
        importance = metric.columns(weight).clamp_min(0)
        mean = importance.mean()
        # A group whose inputs are all dead still deserves its least rounding error.
        importance = importance / mean + 1e-6 if float(mean) > 0 else torch.ones_like(importance)
        values = weight.reshape(-1, self.kind.group)
        weights = importance.expand_as(weight).reshape(-1, self.kind.group)
        parameters = fit_blocks(self.kind, values, weights)
        return parameters.map(lambda tensor: tensor.reshape(weight.shape[0], -1))

    def project(self, weight: Tensor, parameters: BlockParameters) -> Tensor:
        """The nearest values of the blocks under their scales and minima, fp32 ``[out, in]``."""
        codes = self.stored_codes(weight, parameters)
        return block_values(self.kind, codes, *self.steps(parameters))

    def steps(self, parameters: BlockParameters) -> tuple[Tensor, Tensor | None]:
        """Step and low end fp32 ``[out, groups]``."""
        scales = BlockFields(
            parameters.scale, parameters.scale, parameters.minimum, parameters.scales, parameters.minima
        )
        return group_steps(self.kind, scales)

    def stored_codes(self, weight: Tensor, parameters: BlockParameters) -> Tensor:
        """The codes, as they are stored, of the values nearest to ``weight``: int32 ``[out, in]``."""
        kind = self.kind
        step, low = self.steps(parameters)
        grouped = weight.reshape(weight.shape[0], step.shape[1], -1)
        inverse = torch.where(step != 0, 1 / step, 0.0).unsqueeze(-1)
        if kind.table:
            table, stored = value_table(kind, weight.device)
            return stored[table.codes(grouped * inverse)].view(weight.shape)
        shifted = grouped if low is None else grouped - low.unsqueeze(-1)
        rounded = (shifted * inverse).round_().add_(kind.zero).clamp_(kind.bottom, kind.top)
        return rounded.to(torch.int32).view(weight.shape)

    def encode(self, weight: Tensor, parameters: BlockParameters) -> CompressedWeight:
        """Pack a weight ``[out, in]`` that lies on the grid under ``parameters``."""
        shape = (weight.shape[0], weight.shape[1])
        layout = self.layout(shape)
        codes = self.stored_codes(weight, parameters)
        held = {field.name: getattr(parameters, field.name) for field in fields(parameters)}
        return CompressedWeight(layout, shape, layout.encode(BlockFields(codes, **held)))

    def column_rounder(self, parameters: BlockParameters, shape: Shape) -> ColumnRounder:
        """Rounding of single columns, for solvers that go through them one by one."""
        kind = self.kind
        steps, lows = self.steps(parameters)
        width = shape[1] // steps.shape[1]
        step = steps.T.contiguous()
        inverse = torch.where(step != 0, 1 / step, 0.0)
        if kind.table:
            table, _ = value_table(kind, step.device)

            def round_to_table(values: Tensor, column: int) -> Tensor:
                group = column // width
                return table.nearest(values * inverse[group]) * step[group]

            return round_to_table
        low = torch.zeros_like(step) if lows is None else lows.T.contiguous()
        bottom, top = kind.bottom - kind.zero, kind.top - kind.zero

        def round_column(values: Tensor, column: int) -> Tensor:
            group = column // width
            codes = (values - low[group]).mul_(inverse[group]).round_().clamp_(bottom, top)
            return torch.addcmul(low[group], codes, step[group])

        return round_column

    def element_rounder(self, parameters: BlockParameters, shape: Shape) -> ElementRounder:
        """Rounding of elements in any arrangement."""
        kind = self.kind
        step, lowest = self._rising(parameters)
        width = shape[1] // step.shape[1]
        if kind.table:
            return ScaledTable(step.repeat_interleave(width, 1), value_table(kind, step.device)[0])
        return EvenlySpaced(lowest.repeat_interleave(width, 1), step.repeat_interleave(width, 1), self.top)

    @property
    def top(self) -> int:
        """The highest code, where code k names the k-th smallest value."""
        return len(set(self.kind.table)) - 1 if self.kind.table else self.kind.top - self.kind.bottom

    def codes(self, weight: Tensor, parameters: BlockParameters) -> Tensor:
        """The codes of the nearest values, int64 ``[out, in]``, rising with the value."""
        if self.kind.table:
            return value_table(self.kind, weight.device)[0].codes(self._normalised(weight, parameters))
        return self.position(weight, parameters).round_().clamp_(0, self.top).long()

    def position(self, weight: Tensor, parameters: BlockParameters) -> Tensor:
        """Real-valued codes of ``weight`` ``[out, in]``."""
        if self.kind.table:
            return value_table(self.kind, weight.device)[0].position(self._normalised(weight, parameters))
        step, lowest = self._rising(parameters)
        grouped = weight.reshape(weight.shape[0], step.shape[1], -1) - lowest.unsqueeze(-1)
        return (grouped * torch.where(step > 0, 1 / step, 0.0).unsqueeze(-1)).view(weight.shape)

    def values(self, codes: Tensor, parameters: BlockParameters, factor: Tensor | None = None) -> Tensor:
        """The values of ``codes`` ``[out, in]``; see :class:`~compress.structures.base.HasCodes`."""
        step, lowest = self._rising(parameters)
        if factor is not None:
            stored = self._rising(self._rescaled(parameters, factor.detach()))
            step, lowest = (
                free * factor + (rounded - free * factor.detach())
                for free, rounded in zip((step, lowest), stored, strict=True)
            )
        grouped = codes.reshape(codes.shape[0], step.shape[1], -1)
        if self.kind.table:
            grouped = value_table(self.kind, codes.device)[0].at(grouped)
        return (grouped * step.unsqueeze(-1) + lowest.unsqueeze(-1)).view(codes.shape)

    def scales_of(self, parameters: BlockParameters) -> Tensor:
        """The sizes of the steps fp32 ``[out, groups]``."""
        return self.steps(parameters)[0].abs()

    def rescale(
        self, weight: Tensor, parameters: BlockParameters, scale: Tensor
    ) -> tuple[Tensor, BlockParameters]:
        """``weight``, which lies on the grid, with the same codes under other steps, as near as the integers come to them."""
        codes = self.stored_codes(weight, parameters)
        before = self.scales_of(parameters)
        changed = self._rescaled(parameters, torch.where(before > 0, scale / before, 1.0))
        return block_values(self.kind, codes, *self.steps(changed)), changed

    def refit(
        self, target: Tensor, weight: Tensor, parameters: BlockParameters, gram: Tensor
    ) -> tuple[Tensor, BlockParameters]:
        """The same codes, integer scales and minima under the fp16 scales of least error in the metric."""
        codes = self.stored_codes(weight, parameters)
        _, low = self.steps(parameters)
        lows = None if low is None else low.repeat_interleave(weight.shape[1] // low.shape[1], 1)
        parts = [weight] if lows is None else [weight - lows, lows]
        factors = part_factors(target - weight, parts, gram, parameters.scale.shape[1])
        changed = self._scaled(parameters, factors[0])
        if parameters.minimum is not None:
            minimum = self._scaled(parameters, factors[1]).minimum
            changed = replace(changed, minimum=minimum)
        return block_values(self.kind, codes, *self.steps(changed)), changed

    def where(self, condition: Tensor, new: BlockParameters, old: BlockParameters) -> BlockParameters:
        """``new`` for the groups where ``condition`` ``[out, groups or 1]`` holds, else ``old``; both share what super-blocks
        have, unless whole rows are chosen."""
        whole = condition if condition.shape[1] == 1 or self.kind.scales is None else None
        changes = {}
        for field in fields(new):
            first, second = getattr(new, field.name), getattr(old, field.name)
            inner = field.name in ("scales", "minima")
            if first is not None and (inner or whole is not None):
                changes[field.name] = torch.where(condition, first, second)
        return replace(old, **changes)

    def clipped(self, parameters: BlockParameters, ratios: Sequence[float]) -> list[BlockParameters]:
        """The same grid at other sizes: one set of scales per ratio."""
        return [self._scaled(parameters, torch.full_like(parameters.scale, ratio)) for ratio in ratios]

    def shifted(self, parameters: BlockParameters) -> list[BlockParameters]:
        """The grid moved a little to either side, where it has minima."""
        kind = self.kind
        if not kind.minimum:
            return []
        if parameters.minima is not None:
            moved = (1, 2, 4) if kind.minima > 15 else (1,)
            minima = [parameters.minima + sign * by for by in moved for sign in (-1, 1)]
            return [replace(parameters, minima=each.clamp(0, kind.minima)) for each in minima]
        assert parameters.minimum is not None
        by = (parameters.scale.abs() * part for part in (-0.5, -0.25, 0.25, 0.5))
        return [replace(parameters, minimum=(parameters.minimum + each).half().float()) for each in by]

    def rows_of(self, parameters: BlockParameters, rows: slice) -> BlockParameters:
        """The scales of some rows."""
        return parameters.map(lambda tensor: tensor[rows])

    def stacked(self, several: Sequence[BlockParameters], rows: int) -> BlockParameters:
        """One set of scales for weights of ``rows`` rows laid below each other, each with its own."""
        return _joined(several, torch.cat)

    def picked(self, several: Sequence[BlockParameters], index: Tensor) -> BlockParameters:
        """For each row the scales of the set that ``index`` int64 ``[out]`` names."""
        rows = torch.arange(len(index), device=index.device)
        return _joined(several, torch.stack).map(lambda tensor: tensor[index, rows])

    def group(self, parameters: BlockParameters, index: int) -> tuple[GGUFGrid, BlockParameters]:
        """The grid of one group of columns, and its parameters."""
        kind = self.kind
        block = index if kind.scales is None else index // (kind.block // kind.group)
        places = {"scale": block, "minimum": block, "scales": index, "minima": index}
        held = {name: getattr(parameters, name) for name in places}
        one: dict[str, Any] = {
            n: None if t is None else t[:, places[n]].unsqueeze(1) for n, t in held.items()
        }
        return GGUFGroup(self.type), BlockParameters(**one)

    def with_group(self, parameters: BlockParameters, index: int, group: BlockParameters) -> BlockParameters:
        """The parameters with those of one group replaced; a super-block keeps its scales."""
        own = ("scales", "minima") if self.kind.scales is not None else ("scale", "minimum")
        changes = {}
        for name in own:
            if (held := getattr(parameters, name)) is not None:
                changes[name] = held.clone()
                changes[name][:, index] = getattr(group, name)[:, 0]
        return replace(parameters, **changes)

    def _rescaled(self, parameters: BlockParameters, factor: Tensor) -> BlockParameters:
        """Steps and low ends times ``factor`` ``[out, groups]``, as near as their types come to it."""
        kind = self.kind
        if parameters.scales is None or kind.scales is None:
            return self._scaled(parameters, factor)
        scales = (parameters.scales * factor).round().clamp(*kind.scales).to(torch.int32)
        minima = parameters.minima
        if minima is not None:
            minima = (minima * factor).round().clamp(0, kind.minima).to(torch.int32)
        return replace(parameters, scales=scales, minima=minima)

    def _normalised(self, weight: Tensor, parameters: BlockParameters) -> Tensor:
        """``W / step`` ``[out, in]``."""
        step, _ = self.steps(parameters)
        inverse = torch.where(step != 0, 1 / step, 0.0).unsqueeze(-1)
        return (weight.reshape(weight.shape[0], step.shape[1], -1) * inverse).view(weight.shape)

    def _rising(self, parameters: BlockParameters) -> tuple[Tensor, Tensor]:
        """The size of the step and the lowest value fp32 ``[out, groups]``; zero for a table, which has its values instead."""
        kind = self.kind
        step, low = self.steps(parameters)
        lows = torch.zeros_like(step) if low is None else low
        if kind.table:
            return step, lows
        ends = [lows + (code - kind.zero) * step for code in (kind.bottom, kind.top)]
        return step.abs(), torch.minimum(*ends)

    def _scaled(self, parameters: BlockParameters, factor: Tensor) -> BlockParameters:
        """The fp16 scales times ``factor`` ``[out, blocks]``, rounded to fp16 (or a power of two) again."""
        if self.kind.power:
            exponent = torch.log2(parameters.scale * factor).round()
            return replace(parameters, scale=torch.exp2(exponent))
        minimum = None if parameters.minimum is None else (parameters.minimum * factor).half().float()
        return replace(parameters, scale=(parameters.scale * factor).half().float(), minimum=minimum)


@dataclass(frozen=True)
class GGUFGroup(GGUFGrid):
    """One group of columns by itself: its integers change, the scales of its super-block do not."""

    def clipped(self, parameters: BlockParameters, ratios: Sequence[float]) -> list[BlockParameters]:
        """The same grid at other sizes; a ratio other than one moves the integer by one at least."""
        kind, scales = self.kind, parameters.scales
        if kind.scales is None or scales is None:
            return super().clipped(parameters, ratios)
        found = []
        for ratio in ratios:
            away = (scales * ratio).round() - scales
            least = torch.full_like(away, 0.0 if ratio == 1 else 1.0 if ratio > 1 else -1.0)
            step = torch.where(away == 0, least * torch.where(scales < 0, -1.0, 1.0), away)
            moved = (scales + step).clamp(*kind.scales).to(torch.int32)
            found.append(replace(parameters, scales=moved))
        return found


def _joined(several: Sequence[BlockParameters], join: Callable[[list[Tensor]], Tensor]) -> BlockParameters:
    """Several sets of parameters, tensor by tensor joined into one."""
    held = {field.name: [getattr(each, field.name) for each in several] for field in fields(BlockParameters)}
    joined: dict[str, Any] = {n: None if v[0] is None else join(v) for n, v in held.items()}
    return BlockParameters(**joined)


if TYPE_CHECKING:  # mypy: what solvers may require of this grid

    def _capabilities(grid: GGUFGrid) -> tuple[HasElements, HasShifts, HasCodes, RefitsScales]:
        return grid, grid, grid, grid
