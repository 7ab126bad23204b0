"""Moments of the gradients of one block's weights: squared gradients, and the Fisher matrix as a Kronecker product.

The Fisher matrix of a weight ``[out, in]`` over its entries is ``E[vec(G) vec(G)ᵀ]`` for per-batch gradients G. Its nearest
Kronecker product ``L ⊗ R`` is the leading singular triple of the rearranged matrix (Van Loan and Pitsianis), whose product
with a matrix V is ``E[G V Gᵀ]`` and whose transpose's is ``E[Gᵀ V G]``: power iteration needs neither the matrix nor the
gradients of more than one batch (GFWSVD, arXiv:2505.17974, section 3.2, which takes it to a Lanczos solver). Begun at
identities every iterate is positive semidefinite, as the triple itself is, so no sign has to be chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from compress.calibrate.gradient_shares import Gather, alone
from compress.calibrate.gradient_sums import FactorPass, FirstPass, OutputPass, TokenSums, WeightSums
from compress.calibrate.gradients import BlockGradients
from compress.models.views import WeightView
from compress.score.statistics import GRADIENT_NEEDS, Statistics

PASSES = 3
"""Passes over the gradients of a block, for the Kronecker factors; the product has settled to a per cent by then."""


def gradient_statistics(
    block: BlockGradients,
    views: Sequence[WeightView],
    needs: Mapping[str, frozenset[str]],
    gather: Gather = alone,
) -> dict[str, Statistics]:
    """Gradient moments. View name → those that ``needs`` asks for, fp32.

    Args:
        block: the gradients of the loaded block.
        views: its weights.
        needs: view name → which moments.
        gather: adds up over batches; several processes share them.

    Raises:
        UserError: a gradient is not finite.
    """
    moments = _weight_gradient_moments(block, views, needs, gather)
    asked = {view.name: needs.get(view.name, frozenset()) for view in views}
    with_output_gradients = [
        view for view in views if asked[view.name] & {"output_gradients", "token_gradients"}
    ]
    weighted = frozenset(name for name, wanted in asked.items() if "token_gradients" in wanted)
    for name, sums in _output_gradient_moments(block, with_output_gradients, weighted, gather).items():
        before = moments.get(name, Statistics(tokens=block.count))
        moments[name] = replace(
            before, output_gradient_gram=sums.left, dense_gram=sums.right, token_weights=sums.weights
        )
    return moments


def block_output_moments(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """What an error of a block's output costs: a metric of its features, and how much each token counts.

    Args:
        gradients: of the model's loss by the block's outputs, ``[samples, length, hidden]``.

    Returns:
        ``E[δ δᵀ/‖δ‖²] E‖δ‖²`` fp32 ``[hidden, hidden]``, and ``‖δ‖² / E‖δ‖²`` fp32 ``[samples · length]``.
    """
    rows = gradients.flatten(0, 1)
    sums = TokenSums.of(rows[:, :1], rows, weighted=True).means()
    assert sums.weights is not None
    return sums.left, sums.weights


def _output_gradient_moments(
    block: BlockGradients, views: Sequence[WeightView], weighted: frozenset[str], gather: Gather
) -> dict[str, TokenSums]:
    """K-FAC factors: ``E[δ δᵀ]`` and ``E[x xᵀ]`` over tokens, for output gradients δ and inputs x (arXiv:1503.05671, eq. 1).

    Of the weights in ``weighted`` tokens count by their gradients (:class:`compress.score.fisher.Fisher`), and the weight of
    each token is kept. For weights without a module of their own: ``E[G Gᵀ]`` and ``E[Gᵀ G] / E‖G‖²``.
    """
    direct = [view for view in views if block.has_output_gradients(view)]
    sums: Mapping[str, TokenSums] = gather(block, OutputPass(direct, weighted)) if direct else {}
    moments = {name: total.means() for name, total in sums.items()}
    rest = [view for view in views if view.name not in moments]
    wanted = FirstPass(rest, {view.name: frozenset({"fisher"}) for view in rest}, 1 / block.count)
    for name, mean in gather(block, wanted).items() if rest else ():
        assert mean.left is not None
        assert mean.right is not None
        trace = mean.right.trace().clamp_min(torch.finfo(torch.float32).tiny)
        moments[name] = TokenSums(mean.left, mean.right / trace, block.count)
    return moments


def _weight_gradient_moments(
    block: BlockGradients,
    views: Sequence[WeightView],
    needs: Mapping[str, frozenset[str]],
    gather: Gather,
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
    share = 1 / block.count
    sums: Mapping[str, WeightSums] = gather(block, FirstPass(wanted, asked, share))
    moments = {
        view.name: Statistics(
            tokens=block.count,
            squared_gradient=sums[view.name].squared,
            gradient_rows=sums[view.name].rows,
        )
        for view in wanted
    }
    factored = [view for view in wanted if "fisher" in asked[view.name]]
    if not factored:
        return moments
    factors = {view.name: _factors(sums[view.name]) for view in factored}
    for _ in range(PASSES - 1):
        again = gather(block, FactorPass(factored, factors, share))
        factors = {view.name: _factors(again[view.name]) for view in factored}
    # The left factor belongs to the right one that it was made with: together they carry the scale.
    last = gather(
        block, FactorPass(factored, {name: (None, right) for name, (_, right) in factors.items()}, share)
    )
    for view in factored:
        moments[view.name] = replace(
            moments[view.name], fisher_left=last[view.name].left, fisher_right=factors[view.name][1]
        )
    return moments


def _factors(sums: WeightSums) -> tuple[Tensor, Tensor]:
    """Both factors with norm 1."""
    assert sums.left is not None
    assert sums.right is not None
    return _unit(sums.left), _unit(sums.right)


def _unit(matrix: Tensor) -> Tensor:
    return matrix / matrix.norm().clamp_min(torch.finfo(torch.float32).tiny)
