"""Scales of input channels: what the transforms that look for them share."""

from __future__ import annotations

import torch
from torch import Tensor


def powers_of_two(scale: Tensor) -> Tensor:
    """``scale`` fp32, divided by the middle of its range, to the nearest power of two within 2^±8."""
    logs = scale.log2()
    logs = logs - (logs.max() + logs.min()) / 2
    return torch.exp2(logs.round().clamp(-8, 8))


def positive(values: Tensor) -> Tensor:
    """``values`` with zeros raised to the smallest positive value, and all to 1e-4 of the largest."""
    above = values[values > 0]
    floor = float(above.min()) if len(above) else 1.0
    return values.clamp_min(max(floor, 1e-4 * float(values.max()) if len(above) else 1.0))


def spread_rows(weight: Tensor, rows: int) -> Tensor:
    """About ``rows`` evenly spaced rows of a weight ``[out, in]``, fp32."""
    step = max(1, weight.shape[0] // rows)
    return weight.detach()[::step].float()
