"""``fresh``: every pass over the text reads each token once, in windows that are cut anew and in a new order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fresh:
    """Sampling without replacement within a pass, fresh in each (RS2, arXiv:2305.18424)."""

    name: ClassVar[str] = "fresh"

    def places(self, available: int, length: int, count: int, generator: torch.Generator) -> Tensor:
        """See :class:`~compress.healing.samplers.base.Sampler`."""
        passes: list[Tensor] = []
        while sum(map(len, passes)) < count:
            windows = available // length
            spare = available - windows * length
            shift = int(torch.randint(spare + 1, (1,), generator=generator))
            passes.append(torch.randperm(windows, generator=generator) * length + shift)
        return torch.cat(passes)[:count]
