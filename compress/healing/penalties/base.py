"""What a penalty sees: the trained tensors, their starts, and the packed weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

from torch import Tensor

from compress.healing.trained import Trained


class Penalty(Protocol):
    """One entry of :data:`compress.recipe.registry.PENALTIES`; its fields are its options, ``weight`` among them."""

    name: ClassVar[str]

    def __call__(self, trained: Mapping[str, Trained]) -> Tensor:
        """A number with gradients to the masters, added to the mean loss by token."""
        ...
