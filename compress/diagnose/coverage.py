"""Coverage: whether a text moves in directions that the calibration text left empty."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.diagnose.base import Cell, Finding

NAME = "coverage"
WIDTH = 256
"""Directions that hidden states are projected to, at random."""
RIDGE = 0.01
FOREIGN = 1.5


def second_moment(states: list[Tensor]) -> Tensor:
    """``E[z zᵀ]``, fp64 ``[k, k]``, of hidden states ``[b, length, hidden]`` projected to ``k ≤ 256`` random directions."""
    hidden = states[0].shape[-1]
    width = min(WIDTH, hidden)
    generator = torch.Generator().manual_seed(0)
    projection = torch.linalg.qr(torch.randn(hidden, width, generator=generator, dtype=torch.float64)).Q
    total, count = torch.zeros(width, width, dtype=torch.float64), 0
    for batch in states:
        z = batch.detach().reshape(-1, hidden).double().cpu() @ projection
        total += z.T @ z
        count += len(z)
    return total / max(count, 1)


def leverage(calibration: Tensor, text: Tensor) -> float:
    """``tr((C + λI)⁻¹ T) / tr((C + λI)⁻¹ C)`` for the second moments C of the calibration text and T of the other.

    It is 1 for two samples of one distribution, and grows where T has energy in directions that C lacks. λ is a hundredth of
    the mean eigenvalue of C.
    """
    count = len(calibration)
    ridge = RIDGE * float(calibration.trace()) / count + 1e-30
    inverse = torch.linalg.inv(calibration + ridge * torch.eye(count, dtype=calibration.dtype))
    return float((inverse * text).sum() / (inverse * calibration).sum().clamp_min(1e-300))


def finding(leverages: list[float]) -> Finding:
    """The table of a leverage by block, and what it means."""
    worst = max(range(len(leverages)), key=lambda index: leverages[index])
    most = leverages[worst]
    advice = (
        f"Before block {worst} the text has {most:.1f} times the leverage of the calibration text: calibrate on text like it."
        if most >= FOREIGN
        else f"The text moves where the calibration text does (leverage at most {most:.2f}): the calibration fits it."
    )
    rows: tuple[tuple[Cell, ...], ...] = tuple(enumerate(leverages))
    return Finding(NAME, "Coverage by the calibration text", ("block", "leverage"), rows, advice)
