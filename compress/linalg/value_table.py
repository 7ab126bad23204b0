"""Value tables: the few values, evenly spaced or not, that a normalised element may take (NF4, small floats, codebooks)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ValueTable:
    """``values`` fp32 ``[levels]``, strictly rising, at least two; code k names ``values[k]``."""

    values: Tensor

    def codes(self, elements: Tensor) -> Tensor:
        """The codes of the values nearest to ``elements``, int64 of their shape."""
        return torch.bucketize(elements.contiguous(), (self.values[1:] + self.values[:-1]) / 2)

    def nearest(self, elements: Tensor) -> Tensor:
        """The nearest values."""
        return self.values[self.codes(elements)]

    def position(self, elements: Tensor) -> Tensor:
        """Real-valued codes: linear between the lower and the upper neighbour, and beyond both ends of the table."""
        lower = torch.bucketize(elements.contiguous(), self.values[1:-1])
        low, high = self.values[lower], self.values[lower + 1]
        return lower + (elements - low) / (high - low)

    def at(self, position: Tensor) -> Tensor:
        """The values at real-valued codes, the inverse of :meth:`position`; differentiable, and exact at whole codes."""
        lower = position.detach().floor().clamp_(0, len(self.values) - 2).long()
        share = (position - lower).to(self.values.dtype)
        return torch.lerp(self.values[lower], self.values[lower + 1], share)
