"""What a sampler says: where the training windows of a text begin."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from torch import Tensor


class Sampler(Protocol):
    """One entry of :data:`compress.recipe.registry.SAMPLERS`; its fields are its options."""

    name: ClassVar[str]

    def places(self, available: int, length: int, count: int, generator: torch.Generator) -> Tensor:
        """First tokens of ``count`` windows of ``length`` tokens in a text of ``available``, int64 ``[count]``."""
        ...
