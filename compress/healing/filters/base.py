"""What a filter says: a factor for the loss of each position."""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import Tensor

from compress.healing.losses.base import Positions


class Filter(Protocol):
    """One entry of :data:`compress.recipe.registry.FILTERS`; its fields are its options."""

    name: ClassVar[str]
    # One that compares positions says in `together` how many at least it wants to see at once.

    def __call__(self, positions: Positions, loss: Tensor) -> Tensor:
        """Factors ``[positions]``, 0 or more, without gradients; ``loss`` ``[positions]`` is detached."""
        ...
