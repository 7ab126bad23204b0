"""``auto``: a threshold by layer that is learned, and gradients below it that fade."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compress.train.masks.base import ByMagnitude, Layers, Weights, check_settled


class _Threshold(torch.autograd.Function):
    """``sign(w) relu(|w| − t)``; where it is 0 the gradient counts by ``annealed``."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, threshold: Tensor, annealed: float) -> Tensor:
        kept = weight.abs() > threshold
        ctx.save_for_backward(kept, weight.sign())
        ctx.annealed = annealed
        return torch.where(kept, weight - weight.sign() * threshold, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        kept, sign = ctx.saved_tensors
        (gradient,) = gradients
        passed = gradient * torch.where(kept, 1.0, ctx.annealed)
        return passed, -(passed * sign).sum(), None


class Thresholded(nn.Module):
    """The weight behind its threshold ``σ(s)``: a parametrization of torch."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.tensor(start))
        self.annealed = 0.0

    def forward(self, weight: Tensor) -> Tensor:
        """``[out, in]``."""
        return _Threshold.apply(weight, self.s.sigmoid(), self.annealed)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Auto(ByMagnitude):
    """AutoSparse (arXiv:2304.06941): ``sign(w) relu(|w| − σ(s))`` with s learned for every layer, and gradients of
    what is 0 scaled by α, which falls from ``annealing`` to 0 by a cosine.

    The threshold begins at ``sparsity · within`` of the weights; the sparsity that it ends at is its own, and the masks that
    stay are those of the share that was asked for.
    """

    annealing: float = 0.75
    within: float = 0.5
    settled: float = 0.75
    _made: list[Thresholded] = field(default_factory=list, init=False, repr=False)

    name: ClassVar[str] = "auto"

    def __post_init__(self) -> None:
        check_settled(self.settled)
        if not 0 <= self.annealing <= 1 or not 0 < self.within <= 1:
            raise ValueError("annealing is from 0 to 1, and within above 0 and up to 1")

    def prepare(self, layers: Layers, sparsity: float) -> None:
        """Put the thresholds before the weights of the layers."""
        for layer in layers.values():
            weight: Tensor = layer.weight.detach()  # type: ignore[assignment,operator,union-attr]
            place = max(1, round(self.within * sparsity * weight.numel()))
            start = float(weight.abs().flatten().kthvalue(place).values.clamp(1e-8, 0.5))
            made = Thresholded(math.log(start / (1 - start))).to(weight.device)
            made.annealed = self.annealing
            parametrize.register_parametrization(layer, "weight", made)
            self._made.append(made)

    def after_step(
        self, weights: Weights, state: dict[str, Tensor], *, sparsity: float, done: float, rate: float
    ) -> None:
        """See :class:`~compress.train.masks.base.Masks`."""
        for made in self._made:
            made.annealed = self.annealing * 0.5 * (1 + math.cos(math.pi * done))

    def finish(self, layers: Layers) -> None:
        """Make what the layers compute with their weights."""
        for layer in layers.values():
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        self._made.clear()
