"""Transforms of a block: the contract, what they read, and what they change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from compress_kernels.activations import ActivationScheme
from torch import Tensor

from compress.models.views import WeightView
from compress.score.statistics import Statistics
from compress.structures.base import Structure
from compress.transforms.fold import Edit, Fold


@dataclass(frozen=True)
class Reader:
    """The weights that read the same input.

    Attributes:
        views: the weights.
        weights: their values ``[out, in]``, in the loaded block.
        structures: in which they will be solved.
        statistics: of their input, before it is rounded.
        activations: how their input will be rounded.
    """

    views: tuple[WeightView, ...]
    weights: tuple[Tensor, ...]
    structures: tuple[Structure, ...]
    statistics: Statistics
    activations: ActivationScheme | None = None


@dataclass
class Transformed:
    """What was done to a block: edits of its vectors by parameter name, and what was done to each weight, in words."""

    edits: dict[str, list[Edit]] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)

    def take(
        self, reader: Reader, fold: Fold | None, scale: Tensor | None, parameters: Mapping[str, Tensor]
    ) -> None:
        """Scale the columns of ``reader`` by ``scale`` ``[in]`` in the loaded block's ``parameters``, if there are both."""
        state = (
            "unscaled: no vector or layer before it can absorb a scale"
            if fold is None
            else "unscaled: no gain"
        )
        if fold is not None and scale is not None:
            state = "scaled"
            for name, edits in fold.apply(scale, parameters).items():
                self.edits.setdefault(name, []).extend(edits)
        self.states |= dict.fromkeys((view.name for view in reader.views), state)

    def disk_values(self, parameter: str, values: Tensor) -> Tensor:
        """A vector of the source, in its dtype, with the edits of ``parameter``."""
        for edit in self.edits.get(parameter, ()):
            values = edit.apply(values)
        return values


class Transform(Protocol):
    """A transform: it scales the inputs of weights, block by block, by their statistics."""

    @property
    def needs(self) -> frozenset[str]:
        """The statistics that it reads."""
        ...

    def scales(self, reader: Reader) -> Tensor | None:
        """Factors of the input columns of the reader's weights, fp32 ``[in]``, powers of two; ``None`` for no scaling."""
        ...
