"""How fast this machine multiplies, from two short products."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

_SIDE = 1024
_ROWS = 64
_REPEATS = 20


@dataclass(frozen=True)
class Rate:
    """Multiply-adds in a second.

    Attributes:
        blocks: in the dtype that blocks are computed in.
        statistics: in fp32, which statistics and solvers are computed in.
    """

    blocks: float
    statistics: float


def measure_rate(device: torch.device, dtype: torch.dtype) -> Rate:
    """Time two products on ``device``, the best of a few, in a fraction of a second.

    They are short, so that the best is the rate of an idle machine even where others compute beside it.
    """
    rates = {kind: _rate(device, kind) for kind in dict.fromkeys((dtype, torch.float32))}
    return Rate(rates[dtype], rates[torch.float32])


def _rate(device: torch.device, dtype: torch.dtype) -> float:
    x = torch.ones(_ROWS, _SIDE, device=device, dtype=dtype)
    weight = torch.ones(_SIDE, _SIDE, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(_REPEATS + 1):
        _wait(device)
        start = time.perf_counter()
        x @ weight
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return _ROWS * _SIDE**2 / max(best, 1e-9)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
