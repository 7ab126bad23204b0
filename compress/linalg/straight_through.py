"""The straight-through estimator: rounding in the forward pass, gradients as if there were none."""

from __future__ import annotations

from torch import Tensor


def through(values: Tensor, stored: Tensor) -> Tensor:
    """``stored`` in the forward pass; its gradient goes to ``values`` as it is (the straight-through estimator,
    arXiv:1308.3432)."""
    return values + (stored - values).detach()
