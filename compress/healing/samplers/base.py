"""What a sampler says: where the training windows of a text begin, and which of them are taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import PreTrainedModel

Model = Callable[[], PreTrainedModel]
"""Loads the dense model."""
TOGETHER = 16
"""Windows that a sampler lets the model read at once."""


def mean_embeddings(windows: Tensor, model: Model, dtype: torch.dtype) -> Tensor:
    """The mean of a window's token embeddings ``[windows, width]`` in ``dtype``, on the CPU.

    Args:
        windows: tokens int64 ``[windows, length]``.
        model: the dense model.
        dtype: in which the mean is taken.
    """
    table = model().get_input_embeddings()
    device = next(table.parameters()).device
    return torch.cat([table(part.to(device)).to(dtype).mean(1).cpu() for part in windows.split(256)])


class Sampler(Protocol):
    """One entry of :data:`compress.recipe.registry.SAMPLERS`; its fields are its options."""

    name: ClassVar[str]

    def places(self, available: int, length: int, count: int, generator: torch.Generator) -> Tensor:
        """First tokens of ``count`` windows of ``length`` tokens in a text of ``available``, int64 ``[count]``."""
        ...


@runtime_checkable
class Selecting(Protocol):
    """A sampler that reads the windows before it takes them, or writes into them."""

    def candidates(self, count: int) -> int:
        """How many windows it wants to see where ``count`` are taken."""
        ...

    def select(self, windows: Tensor, count: int, model: Model, generator: torch.Generator) -> Tensor:
        """The windows to train on, in order.

        Args:
            windows: tokens int64 ``[candidates, length]``.
            count: how many are wanted.
            model: the dense model.
            generator: of random numbers.

        Returns:
            int64 ``[count, length]``.
        """
        ...
