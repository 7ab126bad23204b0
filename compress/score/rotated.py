"""Statistics of a weight's inputs in the basis in which these are rounded, where a scheme rotates them before."""

from __future__ import annotations

from dataclasses import replace

from compress_kernels.activations import ActivationScheme, hadamard_blocks
from torch import Tensor

from .statistics import Statistics

ROTATED = frozenset(
    {"gram", "diagonal", "mean", "cross", "sample", "fisher", "output_gradients", "gradient_rows"}
)
"""Statistics that are known in another basis; the diagonal where the whole matrix is."""


def in_rounded_basis(seen: Statistics, scheme: ActivationScheme | None) -> Statistics:
    """``Hᵀ C H`` for every moment ``C`` of pairs of inputs, ``x H`` for inputs; as they are where nothing is rotated.

    Args:
        seen: of the inputs as they come.
        scheme: how they are rounded.
    """
    order = None if scheme is None else scheme.hadamard
    if order is None:
        return seen

    def both(matrix: Tensor | None) -> Tensor | None:
        if matrix is None:
            return None
        return hadamard_blocks(hadamard_blocks(matrix, order).T, order).T.contiguous()

    gram = both(seen.gram)
    return replace(
        seen,
        gram=gram,
        diagonal=None if gram is None else gram.diagonal().clone(),
        mean=None if seen.mean is None else hadamard_blocks(seen.mean, order),
        cross=both(seen.cross),
        sample=None if seen.sample is None else hadamard_blocks(seen.sample, order),
        fisher_right=both(seen.fisher_right),
        dense_gram=both(seen.dense_gram),
    )
