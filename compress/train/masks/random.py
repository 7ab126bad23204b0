"""``random``: masks drawn before the first step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from compress.train.masks.base import Weights


@dataclass(frozen=True)
class Random:
    """Random masks, which train as well as dense networks where these are wide and the ratios of the layers are right (Liu et
    al., arXiv:2202.02643): the null of all others.

    ``ratios: erk`` keeps of every weight a share in proportion to ``(in + out) / (in · out)`` (arXiv:1911.11134), the same
    number in total; ``uniform`` the same share of each.
    """

    ratios: Literal["erk", "uniform"] = "erk"

    name: ClassVar[str] = "random"
    settled: ClassVar[float] = 0.0

    def begin(self, weights: Weights, sparsity: float, generator: torch.Generator) -> dict[str, Tensor]:
        """The masks."""
        shapes = {name: (weight.shape[0], weight.shape[1]) for name, weight in weights.items()}
        kept = (
            densities(shapes, 1 - sparsity) if self.ratios == "erk" else dict.fromkeys(shapes, 1 - sparsity)
        )
        masks = {}
        for name, weight in weights.items():
            order = torch.randperm(weight.numel(), generator=generator)[: round(kept[name] * weight.numel())]
            mask = torch.zeros(weight.numel(), dtype=torch.bool).index_fill_(0, order, True)
            masks[name] = mask.view(weight.shape).to(weight.device)
        return masks

    def after_step(
        self, weights: Weights, state: dict[str, Tensor], *, sparsity: float, done: float, rate: float
    ) -> None:
        """See :class:`~compress.train.masks.base.Masks`: nothing moves."""

    def settle(self, weights: Weights, state: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """See :class:`~compress.train.masks.base.Masks`."""
        return dict(state)


def densities(shapes: dict[str, tuple[int, int]], density: float) -> dict[str, float]:
    """The Erdős–Rényi share that every weight ``[out, in]`` keeps; what would exceed 1 is kept whole."""
    whole: set[str] = set()
    while True:
        free = {name: shape for name, shape in shapes.items() if name not in whole}
        total = sum(out * inputs for out, inputs in shapes.values()) * density
        total -= sum(shapes[name][0] * shapes[name][1] for name in whole)
        scale = total / max(1, sum(sum(shape) for shape in free.values()))
        found = {name: scale * sum(shape) / (shape[0] * shape[1]) for name, shape in free.items()}
        beyond = {name for name, share in found.items() if share > 1}
        if not beyond:
            return found | dict.fromkeys(whole, 1.0)
        whole |= beyond
