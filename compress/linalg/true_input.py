"""The true-input target: the weight that answers a dense layer's outputs on the inputs that compression has changed."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.linalg.cholesky import shared_inverse_root
from compress.linalg.factor_cache import FactorCache
from compress.score.metric import Side

_DAMPING = 0.01
"""Added to the diagonal of C, relative to its mean, as solvers do."""


def true_input_target(weight: Tensor, cross: Tensor, gram: Side, factors: FactorCache) -> Tensor:
    """``W* = W X C⁻¹ = W + W (X − C) C⁻¹``, fp32 ``[out, in]``.

    With ``C = E[x xᵀ]`` of the compressed model's inputs and ``X = E[x_dense xᵀ]``,
    ``E‖W x_dense − Θ x‖² = tr((W* − Θ) C (W* − Θ)ᵀ) + const``: a solver of the plain problem solves this one when it is given
    W* in the place of W (Qronos, arXiv:2505.11695).

    Args:
        weight: W, fp32 ``[out, in]``.
        cross: X, fp32 ``[in, in]``.
        gram: C.
        factors: where C's damped factor is kept for the solvers and for other weights of the same inputs.
    """
    factor = shared_inverse_root(gram, weight, _DAMPING, descending=True, factors=factors)
    gap = cross - gram.full(weight.shape[1], weight.device)
    shift = torch.empty_like(weight)
    shift[:, factor.order] = (weight @ gap)[:, factor.order] @ factor.root.T @ factor.root
    return weight + shift
