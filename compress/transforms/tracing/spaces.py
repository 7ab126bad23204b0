"""Coordinate spaces of a model: which tensors may be written in another orthonormal basis without a change of its outputs.

A space is the set of features that one tensor dimension runs over: those of the residual stream, or those of the values of one
attention layer. It can be rotated where all that is done to it commutes with a rotation: linear maps into it (its writers) and
out of it (its readers), sums, products with numbers of a token, and normalisation by the root mean square. :mod:`.trace` finds
spaces by watching a forward.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Norm:
    """The scale and shift that a normalisation puts on a space's features: ``x · (weight + offset) + bias``.

    Attributes:
        weight: the vector's parameter; empty where there is none.
        offset: 1 where the norm multiplies by one plus its weight.
        bias: the shift's parameter; empty where there is none.
    """

    weight: str
    offset: float = 0.0
    bias: str = ""


@dataclass(frozen=True)
class Writer:
    """Entries ``start`` to ``stop`` of dimension ``dim`` of a parameter: its products are vectors of the space."""

    parameter: str
    dim: int
    start: int
    stop: int


@dataclass(frozen=True)
class Reader:
    """Dimension ``dim`` of a parameter is summed over with vectors of the space, which a ``norm`` has scaled."""

    parameter: str
    dim: int
    norm: Norm | None


@dataclass(eq=False)
class Space:
    """A space, while a forward is watched. Spaces whose vectors are added become one (:meth:`unite`).

    Attributes:
        size: number of features.
        block: the features are used in blocks of this many, each of which is to be rotated alike; ``size`` for no blocks.
        refusal: what is done to its vectors that does not commute with a rotation; empty if nothing is.
        keeps_mean: the mean over the features is used (LayerNorm), so that a rotation has to keep the vector of ones.
    """

    size: int
    block: int
    writers: set[Writer] = field(default_factory=set)
    readers: set[Reader] = field(default_factory=set)
    refusal: str = ""
    keeps_mean: bool = False
    _into: Space | None = None

    @property
    def root(self) -> Space:
        """The space that it has become."""
        space = self
        while space._into is not None:
            space = space._into
        return space

    def refuse(self, reason: str) -> None:
        """Note why it cannot be rotated; the first reason stays."""
        root = self.root
        root.refusal = root.refusal or reason

    def keep_mean(self) -> None:
        """Note that a rotation has to keep the vector of ones."""
        self.root.keeps_mean = True

    def split_into_blocks(self, block: int) -> None:
        """Note that its vectors are cut into blocks."""
        root = self.root
        smaller, larger = sorted((root.block, block))
        if larger % smaller:
            root.refuse(f"its {root.size} features are cut into blocks of {larger} and of {smaller}")
        root.block = smaller

    def unite(self, other: Space) -> None:
        """Make one space of two whose vectors are added."""
        first, second = self.root, other.root
        if first is second:
            return
        second._into = first
        first.writers |= second.writers
        first.readers |= second.readers
        first.refusal = first.refusal or second.refusal
        first.keeps_mean |= second.keeps_mean
        if first.size != second.size and first.block == first.size and second.block == second.size:
            first.refuse(f"{first.size} and {second.size} features are added")
        first.split_into_blocks(second.block)


@dataclass(frozen=True)
class Rotatable:
    """A space that can be rotated.

    Attributes:
        size: number of features.
        block: blocks of this many features are rotated alike; ``size`` where there are none.
        writers, readers: the parameters that map into it and out of it, in the order of their names.
        keeps_mean: a rotation has to keep the vector of ones.
    """

    size: int
    block: int
    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]
    keeps_mean: bool

    @classmethod
    def of(cls, space: Space) -> Rotatable:
        """The space as it is at the end of a forward."""
        root = space.root
        writers = sorted(root.writers, key=lambda one: (one.parameter, one.dim, one.start))
        readers = sorted(root.readers, key=lambda one: (one.parameter, one.dim))
        return cls(root.size, root.block, tuple(writers), tuple(readers), root.keeps_mean)


@dataclass(frozen=True)
class Spaces:
    """The spaces of a model.

    Attributes:
        residual: that of the residual stream; ``None`` where it cannot be rotated.
        refusal: why it cannot be, in words.
        inner: spaces inside of the blocks that one linear layer writes and another reads, such as values by head.
    """

    residual: Rotatable | None
    refusal: str
    inner: tuple[Rotatable, ...]
