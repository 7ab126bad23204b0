"""What the entries of a diagnosis share: what they are shown, and the table and sentence that they end in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from compress.models.views import WeightView
from compress.score.statistics import Statistics

Cell = str | float | int | None


@dataclass(frozen=True)
class Finding:
    """The result of one entry.

    Attributes:
        entry: its name in the registry.
        title: what the table shows, in a few words.
        columns: heads of the table. rows: its cells, one tuple for each line.
        advice: one sentence: what to do about it.
    """

    entry: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    advice: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "entry": self.entry,
            "title": self.title,
            "rows": [dict(zip(self.columns, row, strict=True)) for row in self.rows],
            "advice": self.advice,
        }


class Entry:
    """One question to a model, answered while its blocks pass by; a subclass overrides what it wants to see."""

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    """Statistics of the inputs, as :data:`compress.score.statistics.NEEDS` names them."""
    hidden: ClassVar[bool] = False
    """Whether it looks at the hidden states before each block."""

    def see_weight(self, view: WeightView, weight: Tensor, inputs: Statistics | None) -> None:
        """Look at a weight, fp32 ``[out, in]``, and at the inputs that it met."""

    def see_block(self, index: int, states: Iterable[Tensor]) -> None:
        """Look at the hidden states before a block, by batch ``[b, length, hidden]``."""

    def finish(self) -> Finding:
        """The table and the advice."""
        raise NotImplementedError

    @property
    def wants_data(self) -> bool:
        """Whether it asks for a text."""
        return bool(self.needs) or self.hidden


def role_of(view: WeightView) -> str:
    """The place of a weight in its block, the same in every block and for every expert: ``self_attn.q_proj``."""
    if view.block is None:
        return view.name
    behind = re.split(r"\.\d+\.", view.name, maxsplit=1)[-1]
    return re.sub(r"\.\d+(?=\.|$)", ".*", behind)


@dataclass
class ByRole:
    """Figures of weights, gathered by role."""

    figures: dict[str, list[tuple[int | None, tuple[float, ...]]]] = field(default_factory=dict)

    def add(self, view: WeightView, *values: float) -> None:
        """Keep the figures of one weight."""
        self.figures.setdefault(role_of(view), []).append((view.block, values))

    def means(self) -> dict[str, tuple[float, ...]]:
        """Role → the mean of each figure."""
        return {
            role: tuple(sum(column) / len(column) for column in zip(*(v for _, v in seen), strict=True))
            for role, seen in self.figures.items()
        }

    def largest(self, column: int) -> tuple[str, int | None, float]:
        """Role, block and value of the largest figure of a column."""
        return max(
            ((role, block, values[column]) for role, seen in self.figures.items() for block, values in seen),
            key=lambda found: found[2],
        )

    def rows(self, worst: int) -> tuple[tuple[Cell, ...], ...]:
        """Role, the means, and the block where the figure of column ``worst`` is largest."""
        means = self.means()
        peaks = {role: max(seen, key=lambda one: one[1][worst])[0] for role, seen in self.figures.items()}
        return tuple((role, *means[role], peaks[role]) for role in self.figures)


def mean(values: Sequence[float]) -> float:
    """The mean; 0 of nothing."""
    return sum(values) / len(values) if values else 0.0


def percent(share: float) -> str:
    """A share for a sentence: ``12%``."""
    return f"{100 * share:.0f}%"
