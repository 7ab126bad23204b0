"""Sums over the batches of a pass with gradients: what a pass wants, and what it has added up for each weight.

A pass is plain data and its sums add up, so that batches can be shared between processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from compress.calibrate.accumulate import add_lower_gram, mirror_lower
from compress.models.views import WeightView


class Batches(Protocol):
    """Gradients of a block's weights by batch, as :class:`~compress.calibrate.gradients.BlockGradients` has them."""

    def by_weight(self, views: Sequence[WeightView]) -> Iterator[dict[str, Tensor]]:
        """View name → the gradient ``[out, in]``."""
        ...

    def by_output(self, views: Sequence[WeightView]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        """View name → inputs ``[tokens, in]`` and gradients by outputs ``[tokens, out]``."""
        ...


class Pass(Protocol):
    """One pass over batches."""

    def sums(self, batches: Batches) -> dict[str, Any]:
        """View name → sums, which have ``add(other)``."""
        ...


@dataclass
class WeightSums:
    """Of gradients G of one weight, each fp32 or not asked for: ``left`` ``[out, out]``, ``right`` ``[in, in]``, ``squared``
    ``[out, in]``, ``rows`` ``[out]``."""

    left: Tensor | None = None
    right: Tensor | None = None
    squared: Tensor | None = None
    rows: Tensor | None = None

    def add(self, other: WeightSums) -> None:
        """Add the sums over other batches."""
        self.left, self.right = _add(self.left, other.left), _add(self.right, other.right)
        self.squared, self.rows = _add(self.squared, other.squared), _add(self.rows, other.rows)


@dataclass(frozen=True)
class FirstPass:
    """Elementwise moments, and one step of the power iteration from identities.

    Attributes:
        views: the weights.
        asked: view name → which of ``squared_gradient``, ``gradient_rows`` and ``fisher``.
        share: the factor of every batch: 1 / their number.
    """

    views: Sequence[WeightView]
    asked: Mapping[str, frozenset[str]]
    share: float

    def sums(self, batches: Batches) -> dict[str, WeightSums]:
        """Means, where ``batches`` are all."""
        sums = {view.name: WeightSums() for view in self.views}
        for gradients in batches.by_weight(self.views):
            for name, gradient in gradients.items():
                mean, asked = sums[name], self.asked[name]
                if "squared_gradient" in asked:
                    mean.squared = _add(mean.squared, gradient.square() * self.share)
                if "gradient_rows" in asked:
                    mean.rows = _add(mean.rows, gradient.square().sum(1) * self.share)
                if "fisher" in asked:
                    mean.left = _add(mean.left, gradient @ gradient.T * self.share)
                    mean.right = _add(mean.right, gradient.T @ gradient * self.share)
        return sums


@dataclass(frozen=True)
class FactorPass:
    """A step of the power iteration: ``E[G R Gᵀ]`` and ``E[Gᵀ L G]``.

    Attributes:
        views: the weights.
        factors: view name → L ``[out, out]`` of norm 1 and R ``[in, in]``; without L the second is left out.
        share: as in :class:`FirstPass`.
    """

    views: Sequence[WeightView]
    factors: Mapping[str, tuple[Tensor | None, Tensor]]
    share: float

    def sums(self, batches: Batches) -> dict[str, WeightSums]:
        """Means, where ``batches`` are all."""
        sums = {view.name: WeightSums() for view in self.views}
        for gradients in batches.by_weight(self.views):
            for name, gradient in gradients.items():
                mean, (left, right) = sums[name], self.factors[name]
                mean.left = _add(mean.left, gradient @ right.to(gradient.device) @ gradient.T * self.share)
                if left is not None:
                    term = gradient.T @ left.to(gradient.device) @ gradient * self.share
                    mean.right = _add(mean.right, term)
        return sums


@dataclass
class TokenSums:
    """Sums over tokens for one weight, fp32; ``sizes`` are the ``‖δ‖²`` by batch, where tokens count by them.

    ``left`` ``[out, out]`` and ``right`` ``[in, in]`` are lower triangles until :meth:`means` makes the factors of them, and
    ``weights`` ``[tokens]``.
    """

    left: Tensor
    right: Tensor
    tokens: int = 0
    sizes: list[Tensor] | None = None
    weights: Tensor | None = None

    @classmethod
    def of(cls, inputs: Tensor, gradients: Tensor, *, weighted: bool) -> TokenSums:
        """Of one batch: inputs ``[tokens, in]`` and output gradients ``[tokens, out]``."""
        left, right = (
            torch.zeros(each.shape[1], each.shape[1], device=each.device) for each in (gradients, inputs)
        )
        sums = cls(left, right, sizes=[] if weighted else None)
        sums.take(inputs, gradients)
        return sums

    def take(self, inputs: Tensor, gradients: Tensor) -> None:
        """Add a batch: inputs ``[tokens, in]`` and output gradients ``[tokens, out]``, bf16 or fp32."""
        self.tokens += len(inputs)
        if self.sizes is not None:
            upcast = gradients.float()
            sizes = upcast.square().sum(1)
            self.sizes.append(sizes)
            inverse = torch.where(sizes > 0, sizes.rsqrt(), torch.zeros_like(sizes))
            gradients = (upcast * inverse.unsqueeze(1)).to(gradients.dtype)
            inputs = (inputs * sizes.sqrt().unsqueeze(1)).to(inputs.dtype)
        add_lower_gram(self.left, gradients)
        add_lower_gram(self.right, inputs)

    def add(self, other: TokenSums) -> None:
        """Add the sums over other tokens, which come behind these."""
        self.left.add_(other.left.to(self.left.device))
        self.right.add_(other.right.to(self.right.device))
        self.tokens += other.tokens
        if self.sizes is not None and other.sizes is not None:
            self.sizes += [sizes.to(self.left.device) for sizes in other.sizes]

    def means(self) -> TokenSums:
        """The factors, whole; the left one carries the scale."""
        mirror_lower(self.left)
        mirror_lower(self.right)
        if self.sizes is None:
            return TokenSums(self.left / self.tokens, self.right / self.tokens, self.tokens)
        sizes = torch.cat(self.sizes)
        # In fp64: few tokens can be larger than all others together.
        mean = sizes.double().mean().float().clamp_min(torch.finfo(torch.float32).tiny)
        right = self.right / mean / self.tokens
        return TokenSums(self.left * mean / self.tokens, right, self.tokens, weights=sizes / mean)


@dataclass(frozen=True)
class OutputPass:
    """Moments of output gradients and inputs over tokens.

    Attributes:
        views: weights with a linear module of their own.
        weighted: names of those whose tokens count by their gradients.
    """

    views: Sequence[WeightView]
    weighted: frozenset[str]

    def sums(self, batches: Batches) -> dict[str, TokenSums]:
        """Sums over the tokens of ``batches``."""
        sums: dict[str, TokenSums] = {}
        for batch in batches.by_output(self.views):
            for name, (inputs, output_gradients) in batch.items():
                # A batch's gradients are divided by the root of its tokens; those of single tokens are not.
                whole = output_gradients * len(output_gradients) ** 0.5
                if name in sums:
                    sums[name].take(inputs, whole)
                else:
                    sums[name] = TokenSums.of(inputs, whole, weighted=name in self.weighted)
        return sums


def _add(total: Tensor | None, term: Tensor | None) -> Tensor | None:
    if total is None or term is None:
        return term if total is None else total
    return total.add_(term.to(total.device))
