"""``uniform``: every window at a random place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Uniform:
    """Independent draws, as calibration takes them."""

    name: ClassVar[str] = "uniform"

    def places(self, available: int, length: int, count: int, generator: torch.Generator) -> Tensor:
        """See :class:`~compress.healing.samplers.base.Sampler`."""
        return torch.randint(available - length + 1, (count,), generator=generator)
