"""The choice of a candidate for every unit within a budget, and what is predicted of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from compress.allocate.candidates import DENSE
from compress.allocate.choice_tree import Fork, Leaf, Node, Way
from compress.allocate.kernel_times import Seconds
from compress.allocate.multiple_choice import Option
from compress.allocate.narrow_trials import smallest_labels
from compress.allocate.nested_choice import choose
from compress.allocate.trial_weights import Allocation, Losses
from compress.allocate.units import GONE, Choice, Unit
from compress.system.units import role

OUTSIDE = "outside the blocks"


@dataclass(frozen=True)
class BudgetProblem:
    """Units, what their candidates lose, and how much a loss counts.

    Attributes:
        units: of the model.
        losses: unit → candidate → nats a token.
        overhead: bytes of the output's weight files beside the units.
        blocks: how many decoder blocks the model has.
        slopes: group of units (:func:`group_of`) → measured over predicted loss; 1 where there is none.
        tilts: unit → a factor on its losses, which the search for a better allocation moves; 1 where there is none.
        removals: block → loss of the model without it, of the blocks that may be left out.
        seconds: unit → candidate → predicted seconds, where a decoding step has a limit; candidates without them are left out.
        limit: seconds that a decoding step may take.
    """

    units: Sequence[Unit]
    losses: Losses
    overhead: int
    blocks: int
    slopes: Mapping[str, float] = field(default_factory=dict)
    tilts: Mapping[str, float] = field(default_factory=dict)
    removals: Mapping[int, float] = field(default_factory=dict)
    seconds: Seconds = field(default_factory=dict)
    limit: float | None = None

    def solve(self, budget: int) -> dict[str, str]:
        """The allocation of least predicted loss whose weight files have at most ``budget`` bytes, within the limit of seconds.

        Raises:
            DoesNotFit: there is none.
        """
        chosen = choose(self._nodes(), budget - self.overhead, self.limit)
        return {unit.name: chosen[unit.name] for unit in self.units}

    def _nodes(self) -> list[Node]:
        """The units as items of the knapsack: a fork for every block that may go, and for every FFN that may be narrow."""
        by_block: dict[int | None, list[Unit]] = {}
        for unit in self.units:
            by_block.setdefault(unit.block, []).append(unit)
        nodes: list[Node] = []
        for block, units in by_block.items():
            inside = self._of_block(units)
            if block is None or block not in self.removals:
                nodes += inside
                continue
            gone = Way(loss=self.removals[block], fixed={unit.name: GONE for unit in units})
            nodes.append(Fork((Way(tuple(inside)), gone)))
        return nodes

    def _of_block(self, units: Sequence[Unit]) -> list[Node]:
        narrow = [unit for unit in units if unit.narrow]
        nodes: list[Node] = [self._leaf(unit, unit.choices) for unit in units if not unit.narrow]
        if narrow:
            ways = [Way(tuple(self._leaf(unit, unit.choices) for unit in narrow))]
            ways += [
                Way(tuple(self._leaf(unit, unit.narrow[kept]) for unit in narrow))
                for kept in narrow[0].narrow
            ]
            nodes.append(Fork(tuple(ways)))
        return nodes

    def _leaf(self, unit: Unit, choices: Sequence[Choice]) -> Leaf:
        if self.limit is not None:
            choices = [choice for choice in choices if choice.label in self.seconds[unit.name]]
        labels = tuple(choice.label for choice in choices)
        times = self.seconds.get(unit.name, {})
        options = (
            Option(choice.nbytes, self.loss_of(unit, choice.label, tilted=True), times.get(choice.label, 0.0))
            for choice in choices
        )
        return Leaf(unit.name, labels, tuple(options))

    def loss_of(self, unit: Unit, label: str, *, tilted: bool = False) -> float:
        """Predicted nats a token of one unit; that of a block that is left out is its first unit's."""
        if label == GONE:
            first = next(one for one in self.units if one.block == unit.block)
            return self.removals[first.block or 0] if unit is first else 0.0
        factor = self.slopes.get(group_of(unit, self.blocks), 1.0)
        return self.losses[unit.name][label] * factor * (self.tilts.get(unit.name, 1.0) if tilted else 1.0)

    def predicted(self, allocation: Allocation) -> float:
        """Predicted nats a token of an allocation: the sum over its units."""
        return sum(self.loss_of(unit, allocation[unit.name]) for unit in self.units)

    def nbytes(self, allocation: Allocation) -> int:
        """Bytes of the weight files under an allocation, as far as the overhead is known."""
        return self.overhead + sum(unit.choice(allocation[unit.name]).nbytes for unit in self.units)

    def predicted_seconds(self, allocation: Allocation) -> float:
        """Predicted seconds of a decoding step under an allocation; 0 without a limit."""
        return sum(self.seconds.get(name, {}).get(label, 0.0) for name, label in allocation.items())

    @property
    def smallest(self) -> int:
        """Bytes of the smallest output."""
        labels = smallest_labels(self.units)
        return self.overhead + sum(unit.choice(labels[unit.name]).nbytes for unit in self.units)

    @property
    def compressible(self) -> bool:
        """Whether any unit has a candidate."""
        return any(choice.label != DENSE for unit in self.units for choice in unit.choices)


def least_seconds(problem: BudgetProblem, budget: int) -> float:
    """The fewest predicted seconds of a decoding step within ``budget`` bytes, whatever the losses."""
    by_time = {name: dict(own) for name, own in problem.seconds.items()}
    every = {unit.name: {choice.label: math.inf for choice in unit.every} for unit in problem.units}
    losses = {name: {**every[name], **own} for name, own in by_time.items()}
    known = replace(problem, losses=losses, slopes={}, tilts={}, removals={}, limit=math.inf)
    return known.predicted_seconds(known.solve(budget))


def group_of(unit: Unit, blocks: int, parts: int = 3) -> str:
    """Units that are alike: of one role and one part of the model's depth, from 0 to ``parts - 1``."""
    first = unit.views[0]
    if first.block is None:
        return f"{OUTSIDE}: {unit.name}"
    return f"{role(first.name, first.block)}, {first.block * parts // blocks}"


def near(unit: Unit, bits: float) -> str:
    """The candidate whose size is nearest to ``bits`` for each number of the weights."""
    wanted = bits * unit.numel / 8
    packed = [choice for choice in unit.choices if choice.label != DENSE] or list(unit.choices)
    return min(packed, key=lambda choice: abs(choice.nbytes - wanted)).label
