"""Choices: the rank, and what goes with it, that an allocation leaves open for each weight, with their bytes and losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from compress_kernels.layouts import nbytes
from torch import Tensor

from .base import Shape, StaysDense, Structure

MULTIPLE = 8
"""Ranks are multiples of this, as matrix units need, unless the rank would be zero."""


@dataclass(frozen=True)
class Choice:
    """One choice for a weight.

    Attributes:
        rank: of the factors.
        columns: number of whole input columns; 0 for factors alone, ``None`` for the structure's setting.
        sparsity: of the sparse residual; 1 for factors alone, ``None`` for the structure's setting.
        shared: name of the weight that stores the input factor, where several weights share it.
    """

    rank: int
    columns: int | None = None
    sparsity: float | None = None
    shared: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Choice:
        """The inverse of :meth:`to_json`."""
        return cls(int(data["rank"]), data.get("columns"), data.get("sparsity"), data.get("shared"))


@dataclass(frozen=True)
class Option:
    """A choice, its bytes on disk, and its loss in the metric."""

    nbytes: int
    loss: float
    choice: Choice


class Chosen(Protocol):
    """A structure whose rank, columns or sparsity can be chosen."""

    def chosen(self, choice: Choice) -> Structure:
        """The structure with that choice."""
        ...

    def rank_of(self, shape: Shape) -> int:
        """The rank of a weight ``[out, in]`` by the recipe's settings."""
        ...


def along_ranks(values: Tensor, structure: Chosen, shape: Shape, other: Choice) -> list[Option]:
    """An option for every rank that makes a weight ``[out, in]`` smaller.

    Args:
        values: singular values ``[n]`` of what is truncated, in the metric.
        structure: whose rank is chosen.
        shape: of the weight.
        other: the choice besides the rank.
    """
    energy = values.double().square()
    tails = energy.flip(0).cumsum(0).flip(0).tolist()
    count = len(tails)
    options = []
    default = structure.rank_of(shape)
    for rank in [*range(default, MULTIPLE), *range(MULTIPLE, count + 1, MULTIPLE)]:
        if rank > count:
            break
        choice = replace(other, rank=rank)
        try:
            size = nbytes(structure.chosen(choice).layout(shape), shape)
        except StaysDense:
            continue
        options.append(Option(size, tails[rank] if rank < count else 0.0, choice))
    return options
