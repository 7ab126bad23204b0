"""Scale search: the scale and the zero point of every group that lose least by nearest rounding, found jointly.

For a scale of a fine range of candidates the grid is slid along the group's values; the best pair is then refined by weighted
least squares on its codes. The zero point is real-valued or whole (NeUQI, arXiv:2505.17595, section 3, which searches it for
each scale in turn).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from compress_kernels import native
from torch import Tensor

_RATIOS = torch.linspace(1.05, 0.3, 26).tolist()
"""Ranges that are tried, relative to that of the extremes."""
_PLACES = 5
"""Positions of a range that is shorter than that of the extremes, from one end to the other."""
_NEAR = (0.976, 0.984, 0.992, 1.008, 1.016, 1.024)
"""Ranges that are tried once more, relative to the best of the coarse search."""
_AROUND = (0.94, 0.97, 1.0, 1.03, 1.06)
"""Ranges that are tried around given ones, each under three zero points."""
_REFINED = 4
"""Rounds of least squares, which end once one gains nothing."""
_CACHED = 1 << 18
"""Values that stay in a processor's cache while plain torch passes over them."""


@dataclass(frozen=True)
class Lattice:
    """Evenly spaced values ``s · (q − z)`` with codes q 0 … ``top``, as a format stores them.

    Attributes:
        top: the highest code.
        whole: zero points are whole numbers ``lowest_zero`` … ``top``.
        middle: the zero point where all groups have the same (a symmetric grid), else ``None``.
        lowest_zero: the smallest zero point.
        stored: a scale as it is read back from disk.
        scale_dtype: what it is stored in.
        signed: with a ``middle``, scales take the sign that puts a group's largest value on the side of more codes.
    """

    top: int
    whole: bool
    middle: int | None
    lowest_zero: int
    stored: Callable[[Tensor], Tensor]
    scale_dtype: torch.dtype
    signed: bool = False

    def allowed(self, zero: Tensor) -> Tensor:
        """The nearest zero points that can be stored."""
        if self.middle is not None:
            return torch.full_like(zero, self.middle)
        return zero.round().clamp_(self.lowest_zero, self.top) if self.whole else zero

    def codes(self, grouped: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """Nearest codes ``[out, groups, width]`` of values under scales and zero points ``[out, groups]``."""
        return (grouped / scale.unsqueeze(-1)).add_(zero.unsqueeze(-1)).round_().clamp_(0, self.top)

    def error(
        self, grouped: Tensor, importance: Tensor, scale: Tensor, zero: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weighted squared errors ``[out, groups]`` of nearest rounding, and the codes."""
        codes = self.codes(grouped, scale, zero)
        values = (codes - zero.unsqueeze(-1)).mul_(scale.unsqueeze(-1))
        return values.sub_(grouped).square_().mul_(importance).sum(-1), codes


Scales = tuple[Tensor, Tensor]
"""Scales and zero points fp32 ``[out, groups]``."""


def search(lattice: Lattice, grouped: Tensor, costs: Tensor, near: Scales | None = None) -> Scales:
    """Scales and zero points of least weighted squared rounding error.

    Args:
        lattice: the values that are allowed.
        grouped: the weight, fp32 ``[out, groups, width]``.
        costs: of squared errors, positive, fp32 ``[groups, width]`` for every row alike, or ``[out · groups, width]``.
        near: scales and zero points to search around; ``None`` searches all ranges.
    """
    rows, groups, width = grouped.shape
    if grouped.device.type == "cpu" and native.load().loaded:
        scale, zero = _by_kernel(lattice, grouped.reshape(-1, width), costs, near)
        return scale.view(rows, groups), zero.view(rows, groups)
    together = max(1, _CACHED // (groups * width))
    best = []
    for start in range(0, rows, together):
        part = slice(start, start + together)
        own = costs if len(costs) == groups else costs[start * groups : (start + together) * groups]
        importance = own.view(-1, groups, width).expand_as(grouped[part])
        around = None if near is None else (near[0][part], near[1][part])
        best.append(_search(lattice, grouped[part], importance, around))
    scales, zeros = zip(*best, strict=True)
    return torch.cat(scales), torch.cat(zeros)


def _by_kernel(lattice: Lattice, values: Tensor, costs: Tensor, near: Scales | None) -> Scales:
    """The same for groups ``[groups, width]`` by the C++ kernel."""
    begun = (None, None) if near is None else tuple(each.float().flatten() for each in near)
    found: Scales = torch.ops.compress_kernels.native_search_scales(
        values.contiguous(),
        costs.contiguous(),
        lattice.top,
        lattice.middle,
        lattice.signed,
        lattice.whole,
        lattice.lowest_zero,
        lattice.scale_dtype,
        float(lattice.stored(torch.zeros(()))),
        torch.tensor(_RATIOS),
        _PLACES,
        torch.tensor(_NEAR if near is None else _AROUND),
        _REFINED,
        *begun,
    )
    return found


def _search(lattice: Lattice, grouped: Tensor, importance: Tensor, near: Scales | None) -> Scales:
    """The same in plain torch."""
    best = _Best(lattice, grouped, importance)
    if near is None:
        _everywhere(lattice, grouped, best)
    else:
        for ratio in _AROUND:
            for move in (0,) if lattice.middle is not None else (-1, 0, 1):
                best.take(lattice.stored(near[0] * ratio), lattice.allowed(near[1] + move))
    for _ in range(_REFINED):
        best.take(*_fitted(lattice, grouped, importance, best))
    assert best.scale is not None
    assert best.zero is not None
    return best.scale, best.zero


def _everywhere(lattice: Lattice, grouped: Tensor, best: _Best) -> None:
    """Try ranges of all sizes and places, then those near the best one."""
    low, high = grouped.amin(-1), grouped.amax(-1)
    if lattice.middle is not None and lattice.signed:
        whole = torch.where(high > -low, -high, -low) * (lattice.top / lattice.middle)
    elif lattice.middle is not None:
        reach = torch.maximum(-low / lattice.middle, high / (lattice.top - lattice.middle)).clamp_min(0)
        whole, low, high = reach * lattice.top, -reach * lattice.middle, reach * lattice.top
    elif lattice.whole:
        low, high = low.clamp_max(0), high.clamp_min(0)
        whole = high - low
    else:
        whole = high - low
    whole = torch.where(whole != 0, whole, torch.ones_like(whole))
    for ratio in _RATIOS:
        scale = lattice.stored(whole * (ratio / lattice.top))
        left, right = -low / scale, lattice.top - high / scale
        places = 1 if ratio >= 1 or lattice.middle is not None else _PLACES
        for place in range(places):
            share = place / (places - 1) if places > 1 else 0.5
            best.take(scale, lattice.allowed(torch.lerp(left, right, share)))
    assert best.scale is not None
    assert best.zero is not None
    scale, zero = best.scale, best.zero
    for ratio in _NEAR:
        best.take(lattice.stored(scale * ratio), zero)


@dataclass(eq=False)
class _Best:
    """The best scales and zero points so far ``[out, groups]``, their errors and codes."""

    lattice: Lattice
    grouped: Tensor
    importance: Tensor
    scale: Tensor | None = None
    zero: Tensor | None = None
    least: Tensor | None = None
    codes: Tensor | None = None

    def take(self, scale: Tensor, zero: Tensor) -> None:
        """Keep the given ones for the groups where they are better."""
        error, codes = self.lattice.error(self.grouped, self.importance, scale, zero)
        if self.scale is None or self.zero is None or self.least is None or self.codes is None:
            self.scale, self.zero, self.least, self.codes = scale, zero, error, codes
            return
        better = error < self.least
        self.scale = torch.where(better, scale, self.scale)
        self.zero = torch.where(better, zero, self.zero)
        self.least = torch.where(better, error, self.least)
        self.codes = torch.where(better.unsqueeze(-1), codes, self.codes)


def _fitted(lattice: Lattice, grouped: Tensor, importance: Tensor, best: _Best) -> tuple[Tensor, Tensor]:
    """Scales and zero points by weighted least squares of the values on the best codes."""
    assert best.codes is not None
    assert best.scale is not None
    assert best.zero is not None
    total = importance.sum(-1)
    mean_code = (importance * best.codes).sum(-1) / total
    mean = (importance * grouped).sum(-1) / total
    if lattice.middle is not None or lattice.whole:
        centred, target = best.codes - best.zero.unsqueeze(-1), grouped
    else:
        centred, target = best.codes - mean_code.unsqueeze(-1), grouped - mean.unsqueeze(-1)
    spread = (importance * centred.square()).sum(-1)
    slope = (importance * centred * target).sum(-1) / spread.clamp_min(torch.finfo(spread.dtype).tiny)
    scale = lattice.stored(torch.where((spread > 0) & (slope * best.scale > 0), slope, best.scale))
    return scale, lattice.allowed(mean_code - mean / scale)
