"""Generalized Gaussians: ``p(w) ∝ exp(−|w/α|^ν)``, 2 a Gaussian, 1 a Laplacian, fitted by moments."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NARROWEST, WIDEST = 0.2, 10.0


def exponent(values: Tensor) -> float:
    """ν by moments: ``E[w²] / E[|w|]² = Γ(1/ν) Γ(3/ν) / Γ(2/ν)²``, between .2 and 10."""
    size = values.abs().double()
    ratio = float(size.square().mean() / size.mean().square().clamp_min(1e-300))
    low, high = NARROWEST, WIDEST
    for _ in range(60):
        middle = math.sqrt(low * high)
        # The ratio falls as ν grows.
        low, high = (middle, high) if _ratio(middle) > ratio else (low, middle)
    return math.sqrt(low * high)


def _ratio(nu: float) -> float:
    return math.exp(math.lgamma(1 / nu) + math.lgamma(3 / nu) - 2 * math.lgamma(2 / nu))


def scale_of(values: Tensor, nu: float) -> float:
    """α by the second moment, ``E[w²] = α² Γ(3/ν) / Γ(1/ν)``."""
    second = float(values.double().square().mean())
    return math.sqrt(second * math.exp(math.lgamma(1 / nu) - math.lgamma(3 / nu)))


def code_bits(codes: Tensor, top: int) -> Tensor:
    """What each code costs under the generalized Gaussian that fits ``codes``, bits fp32 ``[top + 1]``.

    Args:
        codes: whole numbers from 0 to ``top``, of any shape; their mean is the profile's middle.
    """
    middle = float(codes.double().mean())
    # Whole codes are at least as spread as a uniform error of one of them.
    values = (codes.double() - middle).flatten()
    nu = exponent(values)
    alpha = max(scale_of(values, nu), 0.1)
    places = torch.arange(top + 1, dtype=torch.float64, device=codes.device) - middle
    logs = -(places.abs() / alpha).pow(nu)
    return (-(logs - logs.logsumexp(0)) / math.log(2)).float()
