"""Trees of choices: units with their options, and forks whose ways have units of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from compress.allocate.multiple_choice import Option


@dataclass(frozen=True)
class Leaf:
    """A unit and its options, with their labels."""

    name: str
    labels: tuple[str, ...]
    options: tuple[Option, ...]

    @property
    def smallest(self) -> int:
        """The least bytes."""
        return min(option.nbytes for option in self.options)


@dataclass(frozen=True)
class Way:
    """One way of a fork.

    Attributes:
        nodes: what is chosen for under it.
        loss: what it costs beside them.
        fixed: unit → the label that it has without a choice.
    """

    nodes: tuple[Node, ...] = ()
    loss: float = 0.0
    fixed: Mapping[str, str] = field(default_factory=dict)

    @property
    def smallest(self) -> int:
        """The least bytes."""
        return sum(node.smallest for node in self.nodes)


@dataclass(frozen=True)
class Fork:
    """Ways of which one is taken."""

    ways: tuple[Way, ...]

    @property
    def smallest(self) -> int:
        """The least bytes."""
        return min(way.smallest for way in self.ways)


Node = Leaf | Fork


@dataclass
class Chosen:
    """What was chosen: leaves with the index of their option, and the labels that ways fix."""

    picks: list[tuple[Leaf, int]] = field(default_factory=list)
    fixed: dict[str, str] = field(default_factory=dict)

    def add(self, other: Chosen) -> None:
        """Take over what another holds."""
        self.picks += other.picks
        self.fixed |= other.fixed

    @property
    def labels(self) -> dict[str, str]:
        """Unit → label."""
        return {**{leaf.name: leaf.labels[index] for leaf, index in self.picks}, **self.fixed}

    def total(self, of: Callable[[Option], float]) -> float:
        """The sum of something over the options."""
        return sum(of(leaf.options[index]) for leaf, index in self.picks)


def leaves(nodes: Sequence[Node]) -> Iterator[Leaf]:
    """All units of a tree, those of every way."""
    for node in nodes:
        if isinstance(node, Leaf):
            yield node
        else:
            for way in node.ways:
                yield from leaves(way.nodes)
