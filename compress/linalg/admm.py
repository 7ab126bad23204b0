"""ADMM: choose a mask and the values on it, in coordinates where every input column and output row has unit energy.

``min ½ tr(L (W−Θ) R (W−Θ)ᵀ)`` with Θ = D and D on the mask is split: Θ solves a ridge problem exactly, D is Θ's
projection, and a dual V holds them together ever tighter (ALPS, arXiv:2406.07831, section 3, algorithm 1, there with L = I).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.linalg.factor_cache import FactorCache
from compress.score.metric import Kron, Side

Chooser = Callable[[Tensor], Tensor]
"""importance ``[out, in]`` → the mask bool ``[out, in]`` of an allowed pattern."""

_CHECK = 3
_FAINT = 1e-6


@dataclass(frozen=True)
class Penalties:
    """The penalty of Θ ≠ D over the steps.

    Attributes:
        first: of the first steps; metrics have a mean eigenvalue of 1 here.
        growth: (share, factor): its growth when more than this share of the kept elements changed in the last three steps.
    """

    first: float
    growth: tuple[tuple[float, float], ...]


PAPER = Penalties(0.1, ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1)))
"""ALPS's, which takes 30 to 45 steps."""

QUICK = Penalties(0.1, ((0.0, 1.5),))
"""Settles in 18 to 21 steps, at a loss within three hundredths of :data:`PAPER`'s (SmolLM2-135M, 50%, 70% and 2:4)."""


@dataclass(frozen=True)
class Split:
    """Where ADMM ends.

    Attributes:
        mask: of what is kept, bool ``[out, in]``.
        values: fp32 ``[out, in]``, 0 off the mask: once the two halves agree, nearly the best on it.
        largest: the largest eigenvalue of the metric in coordinates where every element costs 1; None where it was not needed.
    """

    mask: Tensor
    values: Tensor
    largest: float | None = None


def split(
    weight: Tensor,
    metric: Kron,
    choose: Chooser,
    steps: int,
    factors: FactorCache,
    penalties: Penalties = PAPER,
) -> Split:
    """The mask to which ADMM converges, and the values there.

    Args:
        weight: ``[out, in]`` fp32.
        metric: what an error costs.
        choose: the pattern's mask by importance.
        steps: at most; it ends when the mask does not change between two checks.
        factors: where the eigenvectors of the right side are kept for other weights of the same inputs.
        penalties: how the two halves are pulled together.
    """
    left, right = _basis(metric.left, weight.T), _shared_basis(metric.right, weight, factors)
    target = weight * left.root.unsqueeze(1) * right.root
    if left.vectors is None and right.vectors is None:
        mask = choose(target.square())
        return Split(mask, weight * mask, 1.0)
    values = left.values.unsqueeze(1) * right.values
    goal = _back(_turned(target, left, right) * values, left, right)
    dual, point = torch.zeros_like(target), target
    penalty, before = penalties.first, choose(target.square())
    for step in range(1, steps + 1):
        turned = _turned(goal - dual + penalty * point, left, right)
        free = _back(turned.div_(values + penalty), left, right)
        point = free + dual / penalty
        mask = choose(point.square())
        point.mul_(mask)
        dual.add_(free.sub_(point), alpha=penalty)
        if step % _CHECK == 0:
            changed = int((mask & ~before).sum()) / max(1, int(mask.sum()))
            if changed == 0:
                break
            penalty *= next(factor for share, factor in penalties.growth if changed > share)
            before = mask
    found = point / left.root.unsqueeze(1) / right.root
    # What hardly costs anything is noise of what does, divided by next to nothing.
    clear = (left.root > _FAINT * left.root.max()).unsqueeze(1) & (right.root > _FAINT * right.root.max())
    return Split(mask, torch.where(clear, found, weight * mask), float(values.max()))


@dataclass(frozen=True)
class _Basis:
    """One side: the ``root`` ``[n]`` of its diagonal, and eigenvalues ``[n]`` and vectors of what is left after dividing by
    it on both sides; ``None`` for those of the identity."""

    root: Tensor
    values: Tensor
    vectors: Tensor | None


def _turned(matrix: Tensor, left: _Basis, right: _Basis) -> Tensor:
    """``Q_Lᵀ M Q_R``."""
    matrix = matrix if right.vectors is None else matrix @ right.vectors
    return matrix if left.vectors is None else left.vectors.T @ matrix


def _back(matrix: Tensor, left: _Basis, right: _Basis) -> Tensor:
    """``Q_L M Q_Rᵀ``."""
    matrix = matrix if right.vectors is None else matrix @ right.vectors.T
    return matrix if left.vectors is None else left.vectors @ matrix


def _shared_basis(side: Side, like: Tensor, factors: FactorCache) -> _Basis:
    """:func:`_basis` of the right side, with one eigendecomposition for all weights that read the same inputs."""
    if side.matrix is None or side.matrix.ndim == 1:
        return _basis(side, like)
    return factors.get(side.matrix, "eigenvectors", lambda: _basis(side, like))


def _basis(side: Side, like: Tensor) -> _Basis:
    """The basis of a side ``[n, n]``; ``like`` is ``[..., n]`` on the device of the result."""
    diagonal = side.diagonal(like.shape[-1], like.device)
    root = diagonal.clamp_min(torch.finfo(diagonal.dtype).tiny).sqrt()
    if side.matrix is None or side.matrix.ndim == 1:
        return _Basis(root, torch.ones_like(root), None)
    normalised = side.matrix / root / root.unsqueeze(1)
    normalised = torch.where(torch.isfinite(normalised), normalised, 0.0)
    values, vectors = torch.linalg.eigh(normalised)
    return _Basis(root, values.clamp_min(0), vectors)
