"""Scales and minima of ggml's block types: searched group by group with weights for the columns, then rounded to integers.

The weights are the diagonal of the metric, as llama.cpp's importance matrix is. With codes l the best step and low end of a
group are a weighted least squares fit of ``low + step · l`` to its values; the search is over the codes, which come from
rounding at steps around the one that spans the values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from compress_kernels.value_types import BlockType
from torch import Tensor

from compress.linalg.value_table import ValueTable

_STEPS = 21
"""Steps that are tried for each group."""
_SCALES = 15
"""Scales of a super-block that are tried."""
_NEIGHBOURS = (-1, 0, 1)
"""Integer scales around the rounded one, and minima, that are tried for each group."""
_BYTES = 1 << 26
"""Working memory of one least-squares fit of scales."""
_STRIP = 1 << 20
"""Values that are searched together: what stays in the cache is several times faster."""


@dataclass(frozen=True)
class BlockParameters:
    """What a weight's blocks hold besides the codes; see :class:`compress_kernels.layouts.gguf.BlockFields`.

    Attributes:
        scale: fp32 ``[out, blocks]``, fp16 values (powers of two for E8M0).
        minimum: fp32 ``[out, blocks]``, fp16 values, or ``None``.
        scales: int32 ``[out, groups]``, or ``None``.
        minima: int32 ``[out, groups]``, or ``None``.
    """

    scale: Tensor
    minimum: Tensor | None = None
    scales: Tensor | None = None
    minima: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> BlockParameters:
        """Every tensor changed."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {n: None if v is None else change(v) for n, v in values.items()}
        return BlockParameters(**changed)


def fit_blocks(kind: BlockType, values: Tensor, weights: Tensor) -> BlockParameters:
    """The scales and minima of groups of columns, flat, of least weighted squared rounding error.

    Args:
        kind: the block type.
        values, weights: fp32 ``[groups, width]``, the groups of a block below each other.
    """
    step, low = search_groups(kind, values, weights)
    if kind.scales is not None:
        return _super_blocks(kind, values, weights, step, low)
    scale = step if kind.power else _half(step)
    return BlockParameters(scale, None if low is None else _half(low))


def search_groups(kind: BlockType, values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor | None]:
    """Step, and low end where there is one, fp32 ``[groups]``, for ``values`` and ``weights`` fp32 ``[groups, width]``."""
    rows = max(1, _STRIP // values.shape[1])
    search = _affine if kind.minimum else _table if kind.table else _symmetric
    parts = [search(kind, *part) for part in zip(values.split(rows), weights.split(rows), strict=True)]
    steps = torch.cat([part[0] for part in parts])
    lows = [low for _, low in parts if low is not None]
    return steps, torch.cat(lows) if lows else None


def group_errors(
    kind: BlockType, values: Tensor, weights: Tensor, step: Tensor, low: Tensor | None
) -> Tensor:
    """Weighted squared rounding error ``[groups]`` of ``values`` ``[groups, width]`` under given steps and low ends."""
    return ((nearest_values(kind, values, step, low) - values).square_().mul_(weights)).sum(1)


def nearest_values(kind: BlockType, values: Tensor, step: Tensor, low: Tensor | None) -> Tensor:
    """``values`` ``[groups, width]`` rounded under steps and low ends ``[groups]``."""
    step = step.unsqueeze(1)
    inverse = torch.where(step != 0, 1 / step, 0.0)
    if kind.table:
        table, _ = value_table(kind, values.device)
        return table.nearest(values * inverse) * step
    lows = 0.0 if low is None else low.unsqueeze(1)
    codes = ((values - lows) * inverse).round_().clamp_(kind.bottom - kind.zero, kind.top - kind.zero)
    return codes * step + lows


def value_table(kind: BlockType, device: torch.device) -> tuple[ValueTable, Tensor]:
    """The values of a table type in rising order, and the code that is stored for each, int32."""
    first = {value: code for code, value in reversed(list(enumerate(kind.table)))}
    rising = sorted(first)
    values = torch.tensor(rising, dtype=torch.float32, device=device)
    return ValueTable(values), torch.tensor(
        [first[value] for value in rising], dtype=torch.int32, device=device
    )


def _affine(kind: BlockType, values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Step and low end; where low ends are stored as integers they are not above zero."""
    highest = 0.0 if kind.scales else torch.inf
    low = values.amin(1)
    low = low.clamp_max(0) if kind.scales else low
    span = (values.amax(1) - low).clamp_min(0)
    best_step, best_low = span / kind.top, low
    best = group_errors(kind, values, weights, best_step, best_low)
    weight_sum = weights.sum(1)
    first = (weights * values).sum(1)
    for shift in _shifts(kind.top):
        inverse = torch.where(span > 0, (kind.top + shift) / span, 0.0)
        codes = ((values - low.unsqueeze(1)) * inverse.unsqueeze(1)).round_().clamp_(0, kind.top)
        weighted = weights * codes
        code_sum, square, cross = weighted.sum(1), (weighted * codes).sum(1), (weighted * values).sum(1)
        determinant = weight_sum * square - code_sum * code_sum
        sound = determinant > 1e-12 * weight_sum * square
        step = torch.where(sound, (weight_sum * cross - code_sum * first) / determinant, 0.0)
        at = torch.where(sound, (square * first - code_sum * cross) / determinant, 0.0)
        alone = torch.where(square > 0, cross / square, 0.0)
        above = at > highest
        step, at = torch.where(above, alone, step), at.clamp_max(highest)
        error = group_errors(kind, values, weights, step, at)
        better = sound & (error < best)
        best = torch.where(better, error, best)
        best_step, best_low = torch.where(better, step, best_step), torch.where(better, at, best_low)
    return best_step, best_low


def _symmetric(kind: BlockType, values: Tensor, weights: Tensor) -> tuple[Tensor, None]:
    """Steps of either sign: there is one more code on one side than on the other."""
    largest = values.gather(1, values.abs().argmax(1, keepdim=True)).squeeze(1)
    best_step = -largest / kind.zero
    best = group_errors(kind, values, weights, best_step, None)
    for shift in _shifts(kind.zero):
        for sign in (-1, 1) if kind.scales is None or kind.scales[0] < 0 else (1,):
            inverse = torch.where(largest != 0, sign * (kind.zero + shift) / largest, 0.0)
            codes = (values * inverse.unsqueeze(1)).round_()
            codes.clamp_(kind.bottom - kind.zero, kind.top - kind.zero)
            weighted = weights * codes
            square = (weighted * codes).sum(1)
            step = torch.where(square > 0, (weighted * values).sum(1) / square, 0.0)
            best, best_step = _kept(kind, values, weights, best, best_step, step)
    return best_step, None


def _table(kind: BlockType, values: Tensor, weights: Tensor) -> tuple[Tensor, None]:
    """Positive steps of a table; powers of two for E8M0."""
    reach = float(max(abs(value) for value in kind.table))
    largest = values.abs().amax(1)
    if kind.power:
        top = torch.frexp(largest / reach).exponent
        candidates: Iterator[Tensor] = (
            torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), top + shift), 1.0)
            for shift in (0, -1, -2, 1)
        )
    else:
        candidates = (largest / (reach * (1 - shift / 40)) for shift in _shifts(16))
    best_step = next(candidates)
    best = group_errors(kind, values, weights, best_step, None)
    for step in candidates:
        best, best_step = _kept(kind, values, weights, best, best_step, step)
        if not kind.power:
            codes = nearest_values(kind, values, step, None) / torch.where(step > 0, step, 1.0).unsqueeze(1)
            weighted = weights * codes
            square = (weighted * codes).sum(1)
            fitted = torch.where(square > 0, (weighted * values).sum(1) / square, 0.0).clamp_min(0)
            best, best_step = _kept(kind, values, weights, best, best_step, fitted)
    return best_step, None


def _kept(
    kind: BlockType, values: Tensor, weights: Tensor, best: Tensor, best_step: Tensor, step: Tensor
) -> tuple[Tensor, Tensor]:
    error = group_errors(kind, values, weights, step, None)
    better = error < best
    return torch.where(better, error, best), torch.where(better, step, best_step)


def _shifts(codes: int) -> list[float]:
    """By how many codes the span of the values is stretched over more or fewer than there are."""
    reach = min(1.0, 0.1 * codes + 0.4)
    found: list[float] = torch.linspace(-reach, 2 * reach, _STEPS).tolist()
    return found


def round_scales(target: Tensor, weight: Tensor, lowest: int, highest: int) -> tuple[Tensor, Tensor]:
    """An fp16 scale ``[blocks]`` and integers ``[blocks, groups]`` with products nearest to ``target`` ``[blocks, groups]``.

    Args:
        target: steps, or minima.
        weight: what an error of each costs.
        lowest, highest: the integers' range; with ``lowest < 0`` the scale takes the sign that suits the largest target.
    """
    largest = target.gather(1, target.abs().argmax(1, keepdim=True))
    reach = float(highest)
    best_scale, best = torch.zeros_like(largest), torch.full_like(largest, torch.inf)
    best_codes = torch.zeros_like(target)
    limits = [reach] if lowest >= 0 else [reach, float(lowest)]
    for limit in limits:
        for shrink in torch.linspace(0, 0.25, _SCALES).tolist():
            scale = _half(largest / (limit * (1 - shrink)))
            codes = _rounded(target, scale, lowest, highest)
            square = (weight * codes * codes).sum(1, keepdim=True)
            fitted = torch.where(square > 0, (weight * codes * target).sum(1, keepdim=True) / square, 0.0)
            scale = _half(fitted)
            codes = _rounded(target, scale, lowest, highest)
            error = (weight * (codes * scale - target).square()).sum(1, keepdim=True)
            better = error < best
            best = torch.where(better, error, best)
            best_scale = torch.where(better, scale, best_scale)
            best_codes = torch.where(better, codes, best_codes)
    return best_scale.squeeze(1), best_codes.to(torch.int32)


def _rounded(target: Tensor, scale: Tensor, lowest: int, highest: int) -> Tensor:
    return torch.where(scale != 0, target / scale, 0.0).round().clamp(lowest, highest)


def _half(scale: Tensor) -> Tensor:
    """As fp16 reads it back."""
    return scale.clamp(-65504, 65504).to(torch.float16).float()


def _super_blocks(
    kind: BlockType, values: Tensor, weights: Tensor, step: Tensor, low: Tensor | None
) -> BlockParameters:
    """Integer scales and minima for groups whose best steps and low ends are known; ``[blocks]`` and ``[blocks · each]``."""
    assert kind.scales is not None
    each = kind.block // kind.group
    cost = weights.sum(1)
    # An error of the step counts by the codes that it is multiplied with: by the spread of the values over the step.
    reach = (values if low is None else values - low.unsqueeze(1)).square().mul(weights).sum(1)
    in_steps = torch.where(step != 0, reach / step.square(), cost)
    scale, scales = round_scales(step.view(-1, each), in_steps.view(-1, each), *kind.scales)
    if low is None:
        parameters = BlockParameters(scale, None, scales.view(-1), None)
    else:
        minimum, minima = round_scales(-low.view(-1, each), cost.view(-1, each), 0, kind.minima)
        parameters = BlockParameters(scale, minimum, scales.view(-1), minima.view(-1))
    return _neighbours(kind, values, weights, parameters, each)


def _neighbours(
    kind: BlockType, values: Tensor, weights: Tensor, parameters: BlockParameters, each: int
) -> BlockParameters:
    """The best of the integers next to the rounded ones, for every group by itself."""
    assert kind.scales is not None and parameters.scales is not None
    scale = parameters.scale.repeat_interleave(each)
    minimum = None if parameters.minimum is None else parameters.minimum.repeat_interleave(each)
    best = torch.full_like(scale, torch.inf)
    scales, minima = parameters.scales, parameters.minima
    best_scales, best_minima = scales, minima
    for by in _NEIGHBOURS:
        trial = (scales + by).clamp(*kind.scales)
        for also in _NEIGHBOURS if minima is not None else (0,):
            shifted = None if minima is None else (minima + also).clamp(0, kind.minima)
            low = None if shifted is None or minimum is None else -(minimum * shifted)
            error = group_errors(kind, values, weights, scale * trial, low)
            better = error < best
            best = torch.where(better, error, best)
            best_scales = torch.where(better, trial, best_scales)
            if shifted is not None and best_minima is not None:
                best_minima = torch.where(better, shifted, best_minima)
    return replace(parameters, scales=best_scales, minima=best_minima)


def part_factors(delta: Tensor, parts: Sequence[Tensor], gram: Tensor, blocks: int) -> list[Tensor]:
    """By what to multiply the blocks of each part of a weight, so that its error is least in the metric.

    With Θ the sum of the parts, and v a block of a part, the factors solve ``Σ_v' (v C v'ᵀ) x_v' = v C Δᵀ`` row by row.

    Args:
        delta: Δ, what is missing from Θ to its target, fp32 ``[out, in]``.
        parts: fp32 ``[out, in]`` each.
        gram: C, fp32 ``[in, in]``.
        blocks: of columns.

    Returns:
        The factors ``1 + x`` of each part, fp32 ``[out, blocks]``, between a half and two.
    """
    out, size = delta.shape
    unknowns = len(parts) * blocks
    rows = max(1, _BYTES // (4 * size * unknowns))
    found = []
    for first in range(0, out, rows):
        here = slice(first, first + rows)
        split = [part[here].view(-1, blocks, size // blocks) for part in parts]
        corners = gram.view(blocks, size // blocks, size)
        moved = torch.cat([torch.einsum("rbw,bwi->rbi", each, corners) for each in split], 1)
        apart = moved.view(len(moved), unknowns, blocks, -1)
        normal = torch.cat([torch.einsum("rubw,rbw->rub", apart, each) for each in split], 2)
        right = torch.einsum("rui,ri->ru", moved, delta[here])
        diagonal = normal.diagonal(dim1=1, dim2=2)
        ridge = torch.where(diagonal > 0, 1e-4 * diagonal, 1.0)
        lower, failed = torch.linalg.cholesky_ex(normal + torch.diag_embed(ridge))
        step = torch.cholesky_solve(right.unsqueeze(-1), lower).squeeze(-1)
        usable = (failed == 0).unsqueeze(1) & torch.isfinite(step)
        found.append((1 + torch.where(usable, step, 0.0)).clamp(0.5, 2.0))
    return list(torch.cat(found).split(blocks, dim=1))
