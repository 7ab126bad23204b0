"""What is left to choose by weight in a structure with factors, and what each choice takes and loses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from compress_kernels.layouts import nbytes
from torch import Tensor

from .base import Shape, StaysDense, Structure

MULTIPLE = 8
"""Ranks are multiples of this, which matrix units want, where that leaves any rank at all."""


@dataclass(frozen=True)
class Choice:
    """One point of a structure's freedom.

    Attributes:
        rank: of the factors.
        columns: how many input columns are kept whole, in a structure that keeps some; 0 for factors alone.
        sparsity: the share left out of a sparse part; 1 for factors alone. ``None`` is what the structure says.
        shared: the weight that holds the input factor, where several share one.
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
    """A choice, the bytes that it takes on disk, and what it loses in the metric."""

    nbytes: int
    loss: float
    choice: Choice


class Chosen(Protocol):
    """A structure with something left to choose."""

    def chosen(self, choice: Choice) -> Structure:
        """The structure with nothing left open."""
        ...

    def rank_of(self, shape: Shape) -> int:
        """The rank of a weight ``[out, in]`` by the recipe's own settings."""
        ...


def along_ranks(values: Tensor, structure: Chosen, shape: Shape, other: Choice) -> list[Option]:
    """An option for every rank that makes a weight ``[out, in]`` smaller, from the singular values ``[n]`` to be cut.

    ``other`` says what else is chosen; its rank does not count.
    """
    energy = values.double().square()
    tails = energy.flip(0).cumsum(0).flip(0).tolist()
    count = len(tails)
    found = []
    own = structure.rank_of(shape)
    for rank in [*range(own, MULTIPLE), *range(MULTIPLE, count + 1, MULTIPLE)]:
        if rank > count:
            break
        choice = replace(other, rank=rank)
        try:
            size = nbytes(structure.chosen(choice).layout(shape), shape)
        except StaysDense:
            continue
        found.append(Option(size, tails[rank] if rank < count else 0.0, choice))
    return found
