"""Numbers computed on a device, read in one transfer: each transfer waits until the device has done all it was given."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def on_host(numbers: Iterable[Tensor]) -> list[float]:
    """Scalars of one device and dtype as Python's numbers, in their order."""
    known = list(numbers)
    return torch.stack(known).tolist() if known else []
