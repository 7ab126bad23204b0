"""What an entry of layers says: what it puts in the place of linear layers, what follows a step, and what is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from compress_kernels.layouts import Layout, Shape
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Packed:
    """A trained weight ``[out, in]`` as it is stored."""

    layout: Layout
    shape: Shape
    tensors: Mapping[str, Tensor]

    @property
    def numbers(self) -> int:
        """How many numbers were trained to stay: those that a mask keeps, or all."""
        return int(getattr(self.layout, "nnz", self.shape[0] * self.shape[1]))


class Layers(Protocol):
    """One entry of :data:`compress.recipe.registry.LAYERS`; its fields are its options, of which the settings of a training
    with the same names are set.

    Of an entry that trains other tensors than it stores, ``finish`` leaves linear layers with dense weights, which are what
    the packed ones decode to.
    """

    name: ClassVar[str]
    any_start: ClassVar[bool]
    """Whether a training may begin at the weights of a model."""

    def begin(self, model: PreTrainedModel, names: Iterable[str]) -> None:
        """Replace the linear layers of these names.

        Raises:
            UserError: one that it cannot stand for.
        """
        ...

    def after_step(self, done: float) -> None:
        """What follows an update, ``done`` of the steps being done, above 0 and up to 1."""
        ...

    def finish(self, model: PreTrainedModel) -> dict[str, Packed]:
        """Make the layers what is written; linear layer → its weight, where it is not stored dense."""
        ...
