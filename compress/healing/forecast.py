"""What more tokens would bring, by a power law fitted to the held-out KL."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

EXPONENTS = tuple(0.1 * k for k in range(1, 21))
"""Exponents that are tried."""
POINTS = 4
"""Measurements with tokens that a fit takes at least."""


def forecast(points: Sequence[tuple[int, float]]) -> float | None:
    """The held-out KL that twice the tokens would bring: ``a + b · tokens^−c`` by least squares, c from a table.

    A run with twice the tokens anneals its learning rate later and so ends lower than its curve does here: the figure is for a
    decision, not for a report of quality.

    Args:
        points: tokens and held-out KL, the start first.

    Returns:
        The forecast; None where there are fewer than four measurements, or no falling curve with a floor of 0 or more fits.
    """
    seen = [(tokens, kl) for tokens, kl in points if tokens > 0 and math.isfinite(kl)]
    if len(seen) < POINTS:
        return None
    tokens = torch.tensor([float(tokens) for tokens, _ in seen], dtype=torch.float64)
    kl = torch.tensor([value for _, value in seen], dtype=torch.float64)
    best: tuple[float, float] | None = None
    for exponent in EXPONENTS:
        basis = torch.stack((torch.ones_like(tokens), (tokens / tokens[-1]) ** -exponent), dim=1)
        floor, height = torch.linalg.lstsq(basis, kl.unsqueeze(1)).solution.flatten().tolist()
        if floor < 0 or height <= 0:
            continue
        error = float((basis @ torch.tensor([floor, height], dtype=torch.float64) - kl).square().sum())
        if best is None or error < best[0]:
            best = (error, floor + height * 2.0**-exponent)
    return None if best is None else best[1]
