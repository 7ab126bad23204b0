"""What a transform of a block is, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from compress.models.views import WeightView
from compress.score.statistics import Statistics
from compress.structures.base import Structure
from compress.transforms.fold import Edit, Fold


@dataclass(frozen=True)
class Reader:
    """Weights that read one input.

    Attributes:
        views: which they are; ``weights`` ``[out, in]`` their live values, ``structures`` what they will be solved in.
        statistics: of their input.
    """

    views: tuple[WeightView, ...]
    weights: tuple[Tensor, ...]
    structures: tuple[Structure, ...]
    statistics: Statistics


@dataclass
class Transformed:
    """What was done to a block: edits of its vectors by parameter name, and the state of each weight in words."""

    edits: dict[str, list[Edit]] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)

    def take(
        self, reader: Reader, fold: Fold | None, scale: Tensor | None, parameters: Mapping[str, Tensor]
    ) -> None:
        """Scale the columns of ``reader`` by ``scale`` ``[in]`` in the block's live ``parameters``, if both are there."""
        state = (
            "unscaled: nothing that feeds it alone takes up a scale" if fold is None else "unscaled: no gain"
        )
        if fold is not None and scale is not None:
            state = "scaled"
            for name, edits in fold.apply(scale, parameters).items():
                self.edits.setdefault(name, []).extend(edits)
        self.states |= dict.fromkeys((view.name for view in reader.views), state)

    def disk_values(self, parameter: str, values: Tensor) -> Tensor:
        """A vector as the source has it, in its own dtype, with the edits of ``parameter``."""
        for edit in self.edits.get(parameter, ()):
            values = edit.apply(values)
        return values


class Transform(Protocol):
    """Scales the inputs of weights, block by block, by their statistics."""

    @property
    def needs(self) -> frozenset[str]:
        """The statistics that it reads."""
        ...

    def scales(self, reader: Reader) -> Tensor | None:
        """By what to multiply each input column of the reader's weights, fp32 ``[in]``, powers of two; ``None``: nothing."""
        ...
