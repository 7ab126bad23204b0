"""Leverage: whether vectors move in directions that others left empty."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor

WIDTH = 256
"""Directions that vectors are projected to, at random."""
RIDGE = 0.01
FOREIGN = 1.5
"""A leverage from which on a text counts as another than that of the calibration."""


def second_moment(states: Iterable[Tensor]) -> Tensor:
    """``E[z zᵀ]``, fp64 ``[k, k]``, of hidden states ``[…, hidden]`` projected to ``k ≤ 256`` random directions."""
    total: Tensor | None = None
    count = 0
    for batch in states:
        z = batch.detach().flatten(0, -2).double().cpu() @ _projection(batch.shape[-1])
        total = z.T @ z if total is None else total + z.T @ z
        count += len(z)
    if total is None:
        raise ValueError("there are no vectors")
    return total / max(count, 1)


@lru_cache(maxsize=4)
def _projection(hidden: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(hidden, min(WIDTH, hidden), generator=generator, dtype=torch.float64)
    return torch.linalg.qr(random).Q


def leverage(calibration: Tensor, text: Tensor) -> float:
    """``tr((C + λI)⁻¹ T) / tr((C + λI)⁻¹ C)`` for the second moments C of the calibration text and T of the other.

    It is 1 for two samples of one distribution, and grows where T has energy in directions that C lacks. λ is a hundredth of
    the mean eigenvalue of C.
    """
    count = len(calibration)
    ridge = RIDGE * float(calibration.trace()) / count + 1e-30
    inverse = torch.linalg.inv(calibration + ridge * torch.eye(count, dtype=calibration.dtype))
    return float((inverse * text).sum() / (inverse * calibration).sum().clamp_min(1e-300))
