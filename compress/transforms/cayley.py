"""Cayley steps: descent over orthogonal matrices (arXiv:2002.01113; SpinQuant, arXiv:2405.16406, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST_TURN = 0.5
"""Bound on the norm of a step's skew matrix, so that one step turns no direction far."""


def cayley_step(matrix: Tensor, gradient: Tensor, rate: float) -> Tensor:
    """One step of descent from an orthogonal matrix: ``(I + α/2 A)⁻¹ (I − α/2 A) X`` with ``A = G Xᵀ − X Gᵀ``.

    The result is orthogonal to the working precision, whatever the step. ``α`` is ``rate``, or less where A is large.

    Args:
        matrix: ``X`` ``[n, n]``.
        gradient: ``G``, of the loss by X.
        rate: the learning rate.

    Raises:
        ValueError: a gradient that is not finite.
    """
    if not bool(torch.isfinite(gradient).all()):
        raise ValueError("the gradient by a rotation is not finite")
    x, g = matrix.double(), gradient.double()
    skew = g @ x.T - x @ g.T
    norm = float(torch.linalg.matrix_norm(skew))
    if norm == 0:
        return matrix
    half = min(rate, 2 * _LARGEST_TURN / norm) / 2 * skew
    eye = torch.eye(len(x), dtype=torch.float64, device=x.device)
    return torch.linalg.solve(eye + half, (eye - half) @ x).to(matrix.dtype)
