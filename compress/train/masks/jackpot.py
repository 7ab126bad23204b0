"""``jackpot``: the weights stay as they are, and a mask over them is learned."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compress.train.masks.base import ByMagnitude, Layers, Weights, check_settled, largest


class _Chosen(torch.autograd.Function):
    """``w`` where a score is among the largest; a score's gradient is that of ``w · s``."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scores: Tensor, sparsity: float) -> Tensor:
        ctx.save_for_backward(weight)
        return weight * largest(scores, sparsity)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        (weight,) = ctx.saved_tensors
        return None, gradients[0] * weight, None


class Scored(nn.Module):
    """The weight under the mask of its scores: a parametrization of torch."""

    def __init__(self, weight: Tensor, sparsity: float, scale: float) -> None:
        super().__init__()
        self.sparsity = sparsity
        size = weight.detach().abs()
        self.scores = nn.Parameter(scale * size / size.mean().clamp(min=1e-30))

    def forward(self, weight: Tensor) -> Tensor:
        """``[out, in]``."""
        return _Chosen.apply(weight, self.scores, self.sparsity)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Jackpot(ByMagnitude):
    """Lottery jackpots (arXiv:2104.08700): the weights are frozen and scores are trained, whose largest ones are the mask; it
    begins at the mask of the magnitudes. The gradient passes the choice straight through (edge-popup, arXiv:1911.13299).

    For weights that are trained already (``from_weights``). ``scale`` is the mean score at the start: the smaller, the sooner a
    mask changes. Behind ``settled`` of the steps the chosen weights are trained, too; the paper ends before (``settled: 1``),
    and a restriction of changes that is left out here.
    """

    scale: float = 0.02
    settled: float = 0.75
    _made: list[Scored] = field(default_factory=list, init=False, repr=False)

    name: ClassVar[str] = "jackpot"

    def __post_init__(self) -> None:
        check_settled(self.settled)
        if self.scale <= 0:
            raise ValueError("scale is above 0")

    def prepare(self, layers: Layers, sparsity: float) -> None:
        """Put the scores before the weights of the layers, which are not trained any more."""
        for layer in layers.values():
            weight: Tensor = layer.weight  # type: ignore[assignment]
            weight.requires_grad_(False)
            made = Scored(weight, sparsity, self.scale)
            parametrize.register_parametrization(layer, "weight", made)
            self._made.append(made)

    def after_step(
        self, weights: Weights, state: dict[str, Tensor], *, sparsity: float, done: float, rate: float
    ) -> None:
        """See :class:`~compress.train.masks.base.Masks`: the optimizer moves the scores."""

    def finish(self, layers: Layers) -> None:
        """Make what the layers compute with their weights, to be trained again."""
        for layer in layers.values():
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
            layer.weight.requires_grad_(True)  # type: ignore[union-attr,operator]
        self._made.clear()
