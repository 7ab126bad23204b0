"""``block-low-rank``: a sum of rank-one blocks whose places and sizes are learned with their values."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from compress_kernels.layouts import SparseBitmask
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from compress.train.layers.base import Packed
from compress.train.lost import rank_within, with_lost_linears


class Windows(nn.Module):
    """A factor under one window for each rank, along its other dimension of n entries: a parametrization of torch.

    A window has a width w and a centre, both trained and shares of n; behind the end it goes on at the beginning. While they
    move its mask is the inverse Fourier transform of a Gaussian-Dirichlet function (arXiv:2310.18882, section 3.3): the
    transform of w ones, ``e^(−iπk(w−1)/n) sin(πkw/n) / sin(πk/n)``, moved by the place and times ``e^(−k²/2σ²)``; at
    σ = ∞ and whole numbers it is the window itself. Then masks of zeros and ones stay.

    Args:
        shape: of the factor.
        dim: of its ranks.
        centres: fp32 ``[ranks]``, shares of n where windows begin to be.
    """

    def __init__(self, shape: torch.Size, dim: int, centres: Tensor) -> None:
        super().__init__()
        self.dim, self.size = dim, shape[1 - dim]
        self.width = nn.Parameter(torch.ones(shape[dim], device=centres.device))
        self.centre = nn.Parameter(centres)
        self.sigma = 1.0
        self.settled: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """The factor, masked."""
        return weight * (self.mask() if self.settled is None else self.settled).movedim(0, self.dim)

    def mask(self) -> Tensor:
        """The masks ``[ranks, n]`` fp32."""
        n, width = self.size, (self.size * self.width).unsqueeze(1)
        k = torch.arange(n // 2 + 1, device=width.device, dtype=torch.float32)
        angle = math.pi * k[1:] / n
        ones = (
            torch.cat([width, (angle * width).sin() / angle.sin()], 1)
            * (-0.5 * (k / self.sigma).square()).exp()
        )
        begin = n * self.centre.unsqueeze(1) - width / 2
        # A window of w ones from `begin` on is centred (w − 1) / 2 behind it.
        phase = -2 * math.pi * k / n * (begin + (width - 1) / 2)
        return torch.fft.irfft(torch.complex(ones * phase.cos(), ones * phase.sin()), n=n)

    @torch.no_grad()
    def whole(self) -> tuple[Tensor, Tensor]:
        """Widths, rounded down, and the first entries of the windows, int64 ``[ranks]``."""
        width = (self.size * self.width + 1e-4).floor()
        begin = (self.size * self.centre - self.size * self.width / 2).round()
        return width.to(torch.int64), begin.to(torch.int64) % self.size

    def settle(self, there: Tensor) -> None:
        """Let windows of zeros and ones stay, of the ranks that are ``there``, bool ``[ranks]``."""
        width, begin = self.whole()
        behind = (torch.arange(self.size, device=begin.device) - begin.unsqueeze(1)) % self.size
        self.settled = ((behind < width.unsqueeze(1)) & there.unsqueeze(1)).to(torch.float32)


@dataclass(frozen=True)
class BlockLowRank:
    """``W = Σ_k (m_k ⊙ u_k)(m'_k ⊙ v_k)ᵀ`` with windows m and m' (generalized block low rank, arXiv:2310.18882): low rank,
    block-sparse and block-low-rank matrices are among these.

    It begins at ``spare`` times the rank that ``ratio`` of the parameters would have, all windows whole. Behind every step
    all widths of a layer shrink by one amount, the proximal step of an ℓ1 norm, so that they keep to a number of parameters
    that falls to ``ratio`` (the paper gives the amount, not the number). σ grows from 1 to n. At ``settled`` of the steps the
    windows become whole and stay. A rank with an empty window on one side goes. The factors are stored without what their
    windows leave out.
    """

    ratio: float = 0.6
    spare: float = 2.0
    settled: float = 0.75
    _made: dict[str, tuple[Windows, Windows]] = field(default_factory=dict, init=False, repr=False)
    _budgets: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    name: ClassVar[str] = "block-low-rank"
    any_start: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1 or self.spare < 1 or not 0 < self.settled <= 1:
            raise ValueError("ratio and settled are shares above 0 and up to 1, and spare is 1 or more")

    def begin(self, model: PreTrainedModel, names: Iterable[str]) -> None:
        """See :class:`~compress.train.layers.base.Layers`."""
        for name in names:
            out, inputs = model.get_submodule(name).weight.shape  # type: ignore[union-attr,misc]
            rank = min(out, inputs, round(self.spare * rank_within((out, inputs), self.ratio, 0)))
            self._budgets[name] = int(self.ratio * out * inputs)
            # Of a ratio that is the rank's own share, so that the layer has this rank.
            share = min(1.0, rank * (out + inputs) / (out * inputs))
            with_lost_linears(
                model, ratio=share, columns=0.0, gamma=1.0, activation=False, wanted=name.__eq__
            )
            layer: Any = model.get_submodule(name)
            place = torch.arange(layer.rank, device=layer.left.weight.device, dtype=torch.float32)
            # Spread evenly, and on the other side by the golden ratio, so that blocks lie everywhere.
            left = Windows(layer.left.weight.shape, 1, (place + 0.5) / layer.rank)
            right = Windows(layer.right.weight.shape, 0, (place * 0.6180339887 + 0.5) % 1)
            parametrize.register_parametrization(layer.left, "weight", left)
            parametrize.register_parametrization(layer.right, "weight", right)
            self._made[name] = (left, right)

    @torch.no_grad()
    def after_step(self, done: float) -> None:
        """See :class:`~compress.train.layers.base.Layers`."""
        for name, sides in self._made.items():
            if sides[0].settled is not None:
                continue
            moved = min(1.0, done / self.settled)
            whole = sum(len(side.width) * side.size for side in sides)
            shrink(sides, whole + (self._budgets[name] - whole) * moved)
            for side in sides:
                side.sigma = float(side.size) ** moved
            if moved == 1:
                widths = [side.whole()[0] for side in sides]
                for side in sides:
                    side.settle((widths[0] > 0) & (widths[1] > 0))

    @torch.no_grad()
    def finish(self, model: PreTrainedModel) -> dict[str, Packed]:
        """See :class:`~compress.train.layers.base.Layers`."""
        found = {}
        for name, sides in self._made.items():
            layer: Any = model.get_submodule(name)
            for part, side in zip(("left", "right"), sides, strict=True):
                factor = getattr(layer, part)
                assert side.settled is not None
                mask = side.settled.movedim(0, side.dim) > 0
                parametrize.remove_parametrizations(factor, "weight", leave_parametrized=True)
                weight = factor.weight.detach()
                layout = SparseBitmask(int(mask.sum()), None, torch.float32)
                shape = (weight.shape[0], weight.shape[1])
                found[f"{name}.{part}"] = Packed(layout, shape, layout.encode(weight, mask))
        self._made.clear()
        return found


@torch.no_grad()
def shrink(sides: Iterable[Windows], most: float) -> None:
    """Shrink all widths by one number of entries, none below 0, so that their sum is ``most`` at most; none is above n."""
    windows = list(sides)
    for side in windows:
        side.width.clamp_(0, 1)
    widths = torch.cat([side.size * side.width for side in windows]).double()
    if float(widths.sum()) <= most:
        return
    falling = widths.sort(descending=True).values
    counts = torch.arange(1, len(falling) + 1, device=falling.device)
    by = (falling.cumsum(0) - most) / counts
    amount = float(by[(falling > by).nonzero().max()])
    for side in windows:
        side.width.sub_(amount / side.size).clamp_(min=0)
