"""What is remembered of a weight's inputs: only what was asked for, in fp32, summed as the data goes by."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from compress.score.histogram import Histogram

GRADIENT_NEEDS = frozenset(
    {"squared_gradient", "gradient_rows", "fisher", "output_gradients", "token_gradients"}
)
"""What only a backward through the model tells: gathered in a pass before solving."""

NEEDS = (
    frozenset({"diagonal", "gram", "mean", "mean_abs", "max_abs", "cross", "sample", "histogram"})
    | GRADIENT_NEEDS
)
"""Everything a score or a solver may ask for."""


@dataclass(frozen=True)
class Statistics:
    """Moments of the inputs ``x [in]`` that one weight saw; a moment nobody asked for is ``None``.

    Attributes:
        tokens: how many inputs were seen. An expert that no token reached has 0 and moments of zero.
        gram: ``E[x xᵀ]`` fp32 ``[in, in]``.
        diagonal: ``E[x²]`` fp32 ``[in]``.
        mean: ``E[x]`` fp32 ``[in]``.
        mean_abs: ``E[|x|]`` fp32 ``[in]``.
        max_abs: ``max |x|`` fp32 ``[in]``.
        cross: ``E[x_dense x_compressedᵀ]`` fp32 ``[in, in]``.
        sample: some of the inputs themselves, fp32 ``[tokens, in]``, evenly spaced, no more than ``SAMPLED``.
        histogram: of all input values, for the ranges of static activations.
        squared_gradient: ``E[g²]`` fp32 ``[out, in]`` of the loss by the weight.
        gradient_rows: its sums over the inputs, fp32 ``[out]``.
        fisher_left, fisher_right: fp32 ``[out, out]`` and ``[in, in]``, whose Kronecker product is nearest to the Fisher
            matrix; the right one has norm 1.
        output_gradient_gram, dense_gram: ``E[δ δᵀ]`` fp32 ``[out, out]`` of the loss by the weight's outputs δ, and
            ``E[x xᵀ]`` of the dense model's inputs ``[in, in]``, over tokens.
            With ``token_gradients`` each token counts in the first by its gradient's direction alone, ``‖δ‖²`` being the mean
            one, and in the second by ``‖δ‖²`` relative to the mean, as in ``gram`` and ``cross``.
        token_weights: how much each token of the gradients' windows counts, fp32 ``[tokens]``, 1 on average.
        importance: ``E[x²]`` fp32 ``[in]`` from an importance matrix.
        input_factor, input_values: a right factor ``[rank, in]`` that several weights share, and the singular values
            ``[n]`` of these weights together.
    """

    tokens: int = 0
    gram: Tensor | None = None
    diagonal: Tensor | None = None
    mean: Tensor | None = None
    mean_abs: Tensor | None = None
    max_abs: Tensor | None = None
    cross: Tensor | None = None
    sample: Tensor | None = None
    histogram: Histogram | None = None
    squared_gradient: Tensor | None = None
    gradient_rows: Tensor | None = None
    fisher_left: Tensor | None = None
    fisher_right: Tensor | None = None
    output_gradient_gram: Tensor | None = None
    dense_gram: Tensor | None = None
    token_weights: Tensor | None = None
    importance: Tensor | None = None
    input_factor: Tensor | None = None
    input_values: Tensor | None = None
