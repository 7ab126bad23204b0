"""Scales of small floats: the values that a scale can be stored as, and the search for the best of them by group.

A group with values w and costs c, the diagonal of the metric, takes the scale s of least ``Σ c (w − s · round(w / s))²`` among
the stored values near the one that maps its largest value to the largest element. "Four over six" (arXiv:2512.02010) tries two
of them: the largest value at 6 and at 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from compress.linalg.value_table import ValueTable

ScaleFormat = Literal["e8m0", "e4m3"] | torch.dtype
_LARGEST_E4M3 = 448.0
_SMALLEST_E4M3 = 2.0**-9
_OCTAVE = 8
"""E4M3 has eight values in an octave."""
_STRIP = 1 << 20
"""Values that are searched together: what stays in the cache is several times faster."""
OUTER_TOP = {"minmax": _LARGEST_E4M3, "mse": 256.0}
"""The stored scale of a weight's largest group: with a search there is room above it for a scale 1.75 times as large."""


@dataclass(frozen=True)
class FloatTable(ValueTable):
    """The values of a small float, symmetric about zero; halfway between two of them the even code is taken."""

    def codes(self, elements: Tensor) -> Tensor:
        """The codes of the values nearest to ``elements``, int64 of their shape."""
        middle = len(self.values) // 2
        halfway = (self.values[1:] + self.values[:-1]) / 2
        # An element on a boundary goes below it; where the even code lies above, the boundary is moved below the element.
        above = torch.arange(1, len(self.values), device=self.values.device)
        even = (above - middle).abs() % 2 == 0
        lower = torch.nextafter(halfway, torch.full_like(halfway, -torch.inf))
        return torch.bucketize(elements.contiguous(), torch.where(even, lower, halfway))


@dataclass(frozen=True)
class E4M3Table(FloatTable):
    """The values of E4M3, to which the processor rounds."""

    def nearest(self, elements: Tensor) -> Tensor:
        """The nearest values."""
        clipped = elements.clamp(-_LARGEST_E4M3, _LARGEST_E4M3)
        return clipped.to(torch.float8_e4m3fn).to(elements.dtype)


def stored_scale(scale: Tensor, form: ScaleFormat) -> Tensor:
    """Positive scales rounded to a format, fp32; nothing becomes zero."""
    if form == "e8m0":
        exponent = torch.log2(scale.clamp_min(torch.finfo(torch.float32).tiny)).round().clamp(-126, 127)
        return _power(exponent)
    if form == "e4m3":
        return scale.clamp(_SMALLEST_E4M3, _LARGEST_E4M3).to(torch.float8_e4m3fn).float()
    assert isinstance(form, torch.dtype)
    limits = torch.finfo(form)
    return scale.clamp(limits.tiny, limits.max).to(form).float().clamp_min(limits.tiny)


def moved_scale(scale: Tensor, steps: int, form: ScaleFormat) -> Tensor:
    """The stored scales ``steps`` places above the stored ``scale``; at least the smallest, at most the largest."""
    if form == "e8m0":
        return _power((torch.frexp(scale).exponent - 1 + steps).clamp(-126, 127))
    if form == "e4m3":
        octets = scale.to(torch.float8_e4m3fn).view(torch.uint8).to(torch.int32)
        return (octets + steps).clamp(1, 126).to(torch.uint8).view(torch.float8_e4m3fn).float()
    return stored_scale(scale * 2 ** (steps / _OCTAVE), form)


def largest_scale(largest: Tensor, top: float, form: ScaleFormat) -> Tensor:
    """The scale that a group gets by its largest value alone.

    Args:
        largest: the largest absolute value of each group, fp32, in the unit of the stored scales.
        top: the largest value of an element.
        form: of the scales. With E8M0 it is the power of two of the OCP specification (section 6.3), which clips what lies
            above the largest element; else the largest value becomes the largest element.
    """
    positive = torch.where(largest > 0, largest, top)
    if form == "e8m0":
        exponent = torch.frexp(positive).exponent - torch.frexp(torch.tensor(top)).exponent
        return _power(exponent.clamp(-126, 127))
    return stored_scale(positive / top, form)


def candidate_steps(form: ScaleFormat) -> range:
    """How many places above :func:`largest_scale` the search tries."""
    return range(-2, 3) if form == "e8m0" else range(-5, 8) if form == "e4m3" else range(-5, 9)


def search_scales(
    values: Tensor, costs: Tensor, table: ValueTable, first: Tensor, form: ScaleFormat, outer: Tensor | None
) -> Tensor:
    """The stored scale of least error for each group, fp32 ``[groups]``.

    Args:
        values: fp32 ``[groups, width]``.
        costs: of squared errors, fp32 ``[groups, width]``.
        table: of the elements.
        first: the stored scales in the middle of the search, fp32 ``[groups]``.
        form: of the scales.
        outer: what stored scales are divided by, fp32 ``[1]``, or ``None``.
    """
    rows = max(1, _STRIP // values.shape[1])
    parts = zip(values.split(rows), costs.split(rows), first.split(rows), strict=True)
    return torch.cat([_search(*part, table, form, outer) for part in parts])


def _search(
    values: Tensor, costs: Tensor, first: Tensor, table: ValueTable, form: ScaleFormat, outer: Tensor | None
) -> Tensor:
    best, least = first, _errors(values, costs, first, table, outer)
    for trial in _trials(first, form):
        error = _errors(values, costs, trial, table, outer)
        better = error < least
        best, least = torch.where(better, trial, best), torch.where(better, error, least)
    return best


def _trials(first: Tensor, form: ScaleFormat) -> Iterator[Tensor]:
    return (moved_scale(first, steps, form) for steps in candidate_steps(form) if steps)


def _errors(values: Tensor, costs: Tensor, scale: Tensor, table: ValueTable, outer: Tensor | None) -> Tensor:
    """The weighted squared rounding error of each group."""
    factor = (scale if outer is None else scale / outer).unsqueeze(1)
    return (table.nearest(values / factor).mul_(factor).sub_(values).square_().mul_(costs)).sum(1)


def _power(exponent: Tensor) -> Tensor:
    """``2^exponent`` fp32, exactly."""
    return torch.ldexp(torch.ones(exponent.shape, device=exponent.device), exponent.to(torch.int32))
