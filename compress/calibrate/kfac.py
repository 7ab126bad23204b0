"""Moments of the gradients of one block's weights: squared gradients, and the Fisher matrix as a Kronecker product.

The Fisher matrix of a weight ``[out, in]`` over its entries is ``E[vec(G) vec(G)ᵀ]`` for per-batch gradients G. Its nearest
Kronecker product ``L ⊗ R`` is the leading singular triple of the rearranged matrix (Van Loan and Pitsianis), whose product
with a matrix V is ``E[G V Gᵀ]`` and whose transpose's is ``E[Gᵀ V G]``: power iteration needs neither the matrix nor the
gradients of more than one batch (GFWSVD, arXiv:2505.17974, section 3.2, which takes it to a Lanczos solver). Begun at
identities every iterate is positive semidefinite, as the triple itself is, so no sign has to be chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compress.calibrate.gradients import BlockGradients
from compress.models.views import WeightView
from compress.score.statistics import GRADIENT_NEEDS, Statistics

PASSES = 3
"""Passes over the gradients of a block, for the Kronecker factors; the product has settled to a per cent by then."""


@dataclass
class _Sums:
    """Means over the batches of one pass for one weight."""

    left: Tensor | None = None
    right: Tensor | None = None
    squared: Tensor | None = None
    rows: Tensor | None = None


def gradient_statistics(
    block: BlockGradients, views: Sequence[WeightView], needs: Mapping[str, frozenset[str]]
) -> dict[str, Statistics]:
    """Gradient moments. View name → those that ``needs`` asks for, fp32.

    Args:
        block: the gradients of the loaded block.
        views: its weights.
        needs: view name → which moments.

    Raises:
        UserError: a gradient is not finite.
    """
    moments = _weight_gradient_moments(block, views, needs)
    asked = {view.name: needs.get(view.name, frozenset()) for view in views}
    with_output_gradients = [
        view for view in views if asked[view.name] & {"output_gradients", "token_gradients"}
    ]
    weighted = frozenset(name for name, wanted in asked.items() if "token_gradients" in wanted)
    for name, sums in _output_gradient_moments(block, with_output_gradients, weighted).items():
        before = moments.get(name, Statistics(tokens=block.count))
        moments[name] = replace(
            before, output_gradient_gram=sums.left, dense_gram=sums.right, token_weights=sums.weights
        )
    return moments


@dataclass
class _TokenSums:
    """Sums over tokens for one weight; ``sizes`` are the ``‖δ‖²`` by batch, where tokens count by them.

    Its final state holds means: the factors, and ``weights`` ``[tokens]``.
    """

    left: Tensor
    right: Tensor
    tokens: int
    sizes: list[Tensor] | None = None
    weights: Tensor | None = None

    @classmethod
    def of(cls, inputs: Tensor, gradients: Tensor, *, weighted: bool) -> _TokenSums:
        """Of one batch: inputs ``[tokens, in]`` and output gradients ``[tokens, out]``."""
        if not weighted:
            return cls(gradients.T @ gradients, inputs.T @ inputs, len(inputs))
        sizes = gradients.square().sum(1)
        inverse = torch.where(sizes > 0, sizes.rsqrt(), torch.zeros_like(sizes))
        directions = gradients * inverse.unsqueeze(1)
        right = (inputs * sizes.unsqueeze(1)).T @ inputs
        return cls(directions.T @ directions, right, len(inputs), [sizes])

    def add(self, other: _TokenSums) -> None:
        self.left.add_(other.left)
        self.right.add_(other.right)
        self.tokens += other.tokens
        if self.sizes is not None and other.sizes is not None:
            self.sizes += other.sizes

    def means(self) -> _TokenSums:
        """The factors; the left one carries the scale."""
        if self.sizes is None:
            return _TokenSums(self.left / self.tokens, self.right / self.tokens, self.tokens)
        sizes = torch.cat(self.sizes)
        # In fp64: few tokens can be larger than all others together.
        mean = sizes.double().mean().float().clamp_min(torch.finfo(torch.float32).tiny)
        right = self.right / mean / self.tokens
        return _TokenSums(self.left * mean / self.tokens, right, self.tokens, weights=sizes / mean)


def block_output_moments(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """What an error of a block's output costs: a metric of its features, and how much each token counts.

    Args:
        gradients: of the model's loss by the block's outputs, ``[samples, length, hidden]``.

    Returns:
        ``E[δ δᵀ/‖δ‖²] E‖δ‖²`` fp32 ``[hidden, hidden]``, and ``‖δ‖² / E‖δ‖²`` fp32 ``[samples · length]``.
    """
    rows = gradients.flatten(0, 1).float()
    sums = _TokenSums.of(rows[:, :1], rows, weighted=True).means()
    assert sums.weights is not None
    return sums.left, sums.weights


def _output_gradient_moments(
    block: BlockGradients, views: Sequence[WeightView], weighted: frozenset[str]
) -> dict[str, _TokenSums]:
    """K-FAC factors: ``E[δ δᵀ]`` and ``E[x xᵀ]`` over tokens, for output gradients δ and inputs x (arXiv:1503.05671, eq. 1).

    Of the weights in ``weighted`` tokens count by their gradients (:class:`compress.score.fisher.Fisher`), and the weight of
    each token is kept. For weights without a module of their own: ``E[G Gᵀ]`` and ``E[Gᵀ G] / E‖G‖²``.
    """
    direct = [view for view in views if block.has_output_gradients(view)]
    sums: dict[str, _TokenSums] = {}
    for batch in block.by_output(direct) if direct else ():
        for name, (inputs, output_gradients) in batch.items():
            # A batch's gradients are divided by the root of its tokens; those of single tokens are not.
            whole = output_gradients * len(output_gradients) ** 0.5
            term = _TokenSums.of(inputs, whole, weighted=name in weighted)
            if name in sums:
                sums[name].add(term)
            else:
                sums[name] = term
    moments = {name: total.means() for name, total in sums.items()}
    rest = [view for view in views if view.name not in moments]
    for name, mean in (
        _first_pass(block, rest, {view.name: frozenset({"fisher"}) for view in rest}).items() if rest else ()
    ):
        assert mean.left is not None
        assert mean.right is not None
        trace = mean.right.trace().clamp_min(torch.finfo(torch.float32).tiny)
        moments[name] = _TokenSums(mean.left, mean.right / trace, block.count)
    return moments


def _weight_gradient_moments(
    block: BlockGradients, views: Sequence[WeightView], needs: Mapping[str, frozenset[str]]
) -> dict[str, Statistics]:
    """The moments that need the gradient of the weight itself."""
    asked = {
        view.name: needs.get(view.name, frozenset())
        & (GRADIENT_NEEDS - {"output_gradients", "token_gradients"})
        for view in views
    }
    wanted = [view for view in views if asked[view.name]]
    if not wanted:
        return {}
    moments = {view.name: Statistics(tokens=block.count) for view in wanted}
    factored = [view for view in wanted if "fisher" in asked[view.name]]
    sums = _first_pass(block, wanted, asked)
    for view in wanted:
        mean = sums[view.name]
        moments[view.name] = replace(
            moments[view.name],
            squared_gradient=mean.squared,
            gradient_rows=mean.rows,
            fisher_left=mean.left,
            fisher_right=None if mean.right is None else _unit(mean.right),
        )
    for _ in range(PASSES - 1 if factored else 0):
        again = _pass(block, factored, moments)
        for view in factored:
            mean = again[view.name]
            assert mean.left is not None
            assert mean.right is not None
            # The left factor belongs to the right one that it was made with: together they carry the scale.
            moments[view.name] = replace(
                moments[view.name], fisher_left=mean.left, fisher_right=_unit(mean.right)
            )
    if factored:
        last = _pass(block, factored, moments, right=False)
        for view in factored:
            moments[view.name] = replace(moments[view.name], fisher_left=last[view.name].left)
    return moments


def _first_pass(
    block: BlockGradients, views: Sequence[WeightView], asked: Mapping[str, frozenset[str]]
) -> dict[str, _Sums]:
    """Elementwise moments, and one step of the iteration from identities."""
    sums = {view.name: _Sums() for view in views}
    for gradients in block.by_weight(views):
        for name, gradient in gradients.items():
            mean, share = sums[name], 1 / block.count
            if "squared_gradient" in asked[name]:
                mean.squared = _add(mean.squared, gradient.square() * share)
            if "gradient_rows" in asked[name]:
                mean.rows = _add(mean.rows, gradient.square().sum(1) * share)
            if "fisher" in asked[name]:
                mean.left = _add(mean.left, gradient @ gradient.T * share)
                mean.right = _add(mean.right, gradient.T @ gradient * share)
    return sums


def _pass(
    block: BlockGradients,
    views: Sequence[WeightView],
    moments: Mapping[str, Statistics],
    *,
    right: bool = True,
) -> dict[str, _Sums]:
    """``E[G R Gᵀ]`` and ``E[Gᵀ L G]`` for the factors in ``moments``."""
    sums = {view.name: _Sums() for view in views}
    for gradients in block.by_weight(views):
        for name, gradient in gradients.items():
            mean, before, share = sums[name], moments[name], 1 / block.count
            assert before.fisher_left is not None
            assert before.fisher_right is not None
            mean.left = _add(mean.left, gradient @ before.fisher_right @ gradient.T * share)
            if right:
                left = _unit(before.fisher_left)
                mean.right = _add(mean.right, gradient.T @ left @ gradient * share)
    return sums


def _add(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total.add_(term)


def _unit(matrix: Tensor) -> Tensor:
    return matrix / matrix.norm().clamp_min(torch.finfo(torch.float32).tiny)
