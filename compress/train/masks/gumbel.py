"""``gumbel``: which of four neighbours stay is drawn by learned odds."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compress.errors import UserError
from compress.train.masks.base import ByMagnitude, Layers, Weights, check_settled

GROUP = 4
"""Neighbours in a row that share a choice."""


class Drawn(nn.Module):
    """The weight under masks drawn by odds: a parametrization of torch."""

    def __init__(self, weight: Tensor, kept: int, strength: float, seed: int) -> None:
        super().__init__()
        chosen = list(combinations(range(GROUP), kept))
        patterns = torch.zeros(len(chosen), GROUP).index_put_(
            (torch.arange(len(chosen)).repeat_interleave(kept), torch.tensor(chosen).flatten()),
            torch.tensor(1.0),
        )
        self.patterns = patterns.to(weight.device)
        groups = weight.detach().abs().unflatten(-1, (-1, GROUP))
        sums = groups @ self.patterns.T
        # The odds begin at the magnitudes: a pattern that keeps more of them is the likelier.
        self.logits = nn.Parameter(strength * sums / groups.sum(-1, keepdim=True).clamp(min=1e-30))
        self.temperature = 1.0
        self._generator = torch.Generator().manual_seed(seed)

    def forward(self, weight: Tensor) -> Tensor:
        """``[out, in]``."""
        logits: Tensor = self.logits
        if self.training:
            uniform = torch.rand(logits.shape, generator=self._generator).to(logits).clamp(1e-9, 1 - 1e-7)
            logits = logits - (-uniform.log()).log()
        odds = (logits / self.temperature).softmax(-1)
        return weight * (odds @ self.patterns).flatten(-2)

    @property
    def best(self) -> Tensor:
        """The mask of the likeliest patterns, bool ``[out, in]``."""
        return self.patterns[self.logits.argmax(-1)].flatten(-2) > 0


@dataclass(frozen=True)
class Gumbel(ByMagnitude):
    """Of every four weights in a row a pattern is drawn by Gumbel-softmax (arXiv:1611.01144), whose odds are trained with the
    weights and whose temperature falls from ``hot`` to ``cold``; the likeliest patterns stay (N:M masks as in MaskLLM,
    arXiv:2409.17481, there with frozen weights).

    The share of zeros has to be 1/4, 1/2 or 3/4. ``strength`` is how much the magnitudes count in the first odds.
    """

    hot: float = 4.0
    cold: float = 0.05
    strength: float = 8.0
    settled: float = 0.75
    _made: dict[str, Drawn] = field(default_factory=dict, init=False, repr=False)

    name: ClassVar[str] = "gumbel"

    def __post_init__(self) -> None:
        check_settled(self.settled)
        if not 0 < self.cold <= self.hot or self.strength < 0:
            raise ValueError("cold is above 0 and up to hot, and strength 0 or more")

    def prepare(self, layers: Layers, sparsity: float) -> None:
        """Put the odds before the weights of the layers.

        Raises:
            UserError: another share of zeros, or a weight whose rows are no multiple of four.
        """
        kept = round((1 - sparsity) * GROUP)
        widths = {int(layer.weight.shape[1]) for layer in layers.values()}  # type: ignore[union-attr,index,arg-type]
        if abs(kept - (1 - sparsity) * GROUP) > 1e-9 or not 0 < kept < GROUP:
            raise UserError(
                f"masks 'gumbel' keep 1, 2 or 3 of 4 weights: give a sparsity of 0.25, 0.5 or 0.75, not {sparsity}"
            )
        if any(width % GROUP for width in widths):
            raise UserError(
                "masks 'gumbel' need weights whose number of inputs is a multiple of 4: take other masks"
            )
        for place, (name, layer) in enumerate(layers.items()):
            made = Drawn(layer.weight, kept, self.strength, place)  # type: ignore[arg-type]
            made.temperature = self.hot
            parametrize.register_parametrization(layer, "weight", made)
            self._made[name] = made

    def after_step(
        self, weights: Weights, state: dict[str, Tensor], *, sparsity: float, done: float, rate: float
    ) -> None:
        """See :class:`~compress.train.masks.base.Masks`."""
        for made in self._made.values():
            made.temperature = self.hot * (self.cold / self.hot) ** done

    @torch.no_grad()
    def finish(self, layers: Layers) -> None:
        """Leave the weights under their likeliest masks."""
        for name, layer in layers.items():
            mask = self._made[name].best
            original: Tensor = layer.parametrizations.weight.original.detach().clone()  # type: ignore[union-attr,operator]
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
            layer.weight.copy_(original * mask)  # type: ignore[union-attr,operator]
        self._made.clear()
