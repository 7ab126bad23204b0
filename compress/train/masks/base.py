"""What a rule of masks says: what happens to the weights behind every step, and which of them stay at last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

Weights = Mapping[str, Tensor]
Layers = Mapping[str, nn.Module]


class Masks(Protocol):
    """One entry of :data:`compress.recipe.registry.MASKS`; its fields are its options.

    Weights are ``[out, in]``, one for each linear layer, and are changed in place. A rule that computes with other weights than
    it trains has ``prepare`` and ``finish`` as well (:class:`compress.train.masks.auto.Auto`).
    """

    name: ClassVar[str]

    @property
    def settled(self) -> float:
        """The share of the steps after which the masks stay."""
        ...

    def begin(self, weights: Weights, sparsity: float, generator: torch.Generator) -> dict[str, Tensor]:
        """What it remembers, at the start."""
        ...

    def after_step(
        self, weights: Weights, state: dict[str, Tensor], *, sparsity: float, done: float, rate: float
    ) -> None:
        """Change the weights behind an update, while the masks move.

        Args:
            weights: as the optimizer left them.
            state: as :meth:`begin` made it.
            sparsity: the share of every weight that is to be 0.
            done: the share of the moving steps that are done, above 0 and up to 1.
            rate: the learning rate of the update.
        """
        ...

    def settle(self, weights: Weights, state: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """The masks that stay, bool ``[out, in]``; the weights may be changed once more."""
        ...


def largest(weight: Tensor, sparsity: float) -> Tensor:
    """The mask, bool, of the ``1 − sparsity`` of a weight with the largest magnitudes; ties go to the first ones."""
    kept = weight.numel() - round(sparsity * weight.numel())
    mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    order = weight.detach().abs().flatten().argsort(descending=True, stable=True)
    return mask.index_fill_(0, order[:kept], True).view_as(weight)


class ByMagnitude:
    """The rule of what stays that most entries share: the largest magnitudes of every weight."""

    def begin(self, weights: Weights, sparsity: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def settle(self, weights: Weights, state: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """See :class:`Masks`."""
        return {name: largest(weight, sparsity) for name, weight in weights.items()}


def check_settled(settled: float) -> None:
    """Raise ``ValueError`` for a share out of range."""
    if not 0 < settled <= 1:
        raise ValueError("settled is a share of the steps above 0 and up to 1")


@dataclass(frozen=True)
class Drawn(ByMagnitude):
    """Entries that draw weights to 0 by ``rate · λ · pull(|w|)`` after every step, with λ rising from ``weight`` by ``growth``.

    It is a proximal step, which stops at 0: a subgradient would swing around it.
    """

    weight: float = 1e-3
    growth: float = 1e3
    settled: float = 0.75

    def __post_init__(self) -> None:
        check_settled(self.settled)
        if self.weight <= 0 or self.growth < 1:
            raise ValueError("weight is above 0, and growth at least 1")

    def pull(self, size: Tensor, sparsity: float) -> Tensor:
        """The gradient at magnitudes ``[out, in]``, without λ."""
        raise NotImplementedError

    @torch.no_grad()
    def after_step(
        self, weights: Weights, state: dict[str, Tensor], *, sparsity: float, done: float, rate: float
    ) -> None:
        """See :class:`Masks`."""
        strength = rate * self.weight * self.growth**done
        for weight in weights.values():
            size = weight.abs()
            weight.copy_(weight.sign() * (size - strength * self.pull(size, sparsity)).clamp(min=0))
