"""How fast this machine multiplies, from short products, and what else is known of it."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch

from compress.system.machine import Machine, stored_machine

_SIDE = 1024
_ROWS = 64
_REPEATS = 20


def machine_for(device: torch.device, dtype: torch.dtype) -> Machine:
    """What ``compress plan --measure`` has kept of this machine; else two short products, and the rest assumed.

    Args:
        device: where blocks are computed.
        dtype: what they are computed in.
    """
    kept = stored_machine(device.type, torch.get_num_threads())
    return kept or Machine(measure_products(device, (dtype, torch.float32)), device=device.type)


def measure_products(device: torch.device, dtypes: Iterable[torch.dtype]) -> dict[str, float]:
    """Multiply-adds in a second by dtype (``"bfloat16"``), each of the best of a few products, in a fraction of a second.

    They are short, so that the best is the rate of an idle machine even where others compute beside it.
    """
    return {str(kind).removeprefix("torch."): _rate(device, kind) for kind in dict.fromkeys(dtypes)}


def _rate(device: torch.device, dtype: torch.dtype) -> float:
    x = torch.ones(_ROWS, _SIDE, device=device, dtype=dtype)
    weight = torch.ones(_SIDE, _SIDE, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(_REPEATS + 1):
        wait(device)
        start = time.perf_counter()
        x @ weight
        wait(device)
        best = min(best, time.perf_counter() - start)
    return _ROWS * _SIDE**2 / max(best, 1e-9)


def wait(device: torch.device) -> None:
    """Until everything that was asked of a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
