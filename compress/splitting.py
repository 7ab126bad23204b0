"""Choosing a mask by operator splitting (ADMM), in coordinates where every input column has unit energy.

``min ½ tr((W−Θ) C (W−Θ)ᵀ)`` with Θ = D and D on the support is split: Θ solves a ridge problem exactly, D is Θ's projection,
and a dual V holds them together ever tighter (ALPS, arXiv:2406.07831, section 3, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compress.metric import Side

Chooser = Callable[[Tensor], Tensor]
"""importance ``[out, in]`` → the mask bool ``[out, in]`` of an allowed support."""

_FIRST_PENALTY = 0.1
_LOOK = 3
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
"""By what the penalty grows when more than this share of the kept elements changed since the last look."""


def split(weight: Tensor, side: Side, choose: Chooser, steps: int) -> Tensor:
    """The mask, bool ``[out, in]``, on which the splitting settles.

    Args:
        weight: ``[out, in]`` fp32.
        side: the metric's right side; an error in a row costs what its inputs say.
        choose: the support's choice by importance.
        steps: at most; it ends when the mask stays the same between two looks.
    """
    size = weight.shape[1]
    diagonal = side.diagonal(size, weight.device)
    if side.matrix is None or side.matrix.ndim == 1:
        return choose(weight.square() * diagonal)
    root = diagonal.clamp_min(torch.finfo(diagonal.dtype).tiny).sqrt()
    values, vectors = _spectrum(side, root)
    target = weight * root
    goal = ((target @ vectors) * values) @ vectors.T
    dual, point = torch.zeros_like(target), target
    penalty, before = _FIRST_PENALTY, choose(target.square())
    for step in range(1, steps + 1):
        free = ((goal - dual + penalty * point) @ vectors / (values + penalty)) @ vectors.T
        shifted = free + dual / penalty
        mask = choose(shifted.square())
        point = shifted * mask
        dual = dual + penalty * (free - point)
        if step % _LOOK == 0:
            changed = int((mask & ~before).sum()) / max(1, int(mask.sum()))
            if changed == 0:
                break
            penalty *= next(factor for share, factor in _GROWTH if changed > share)
            before = mask
    return mask


def _spectrum(side: Side, root: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``[in]`` and vectors ``[in, in]`` of the normalised matrix, kept with the side: weights share inputs."""
    if "spectrum" not in side.memo:
        matrix = side.full(len(root), root.device)
        normalised = matrix / root / root.unsqueeze(1)
        normalised = torch.where(torch.isfinite(normalised), normalised, 0.0)
        values, vectors = torch.linalg.eigh(normalised)
        side.memo["spectrum"] = (values.clamp_min(0), vectors)
    spectrum: tuple[Tensor, Tensor] = side.memo["spectrum"]
    return spectrum
