"""``lost`` and ``low-rank``: factors with an activation between them beside a few whole columns, and factors alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from transformers import PreTrainedModel

from compress.train.layers.base import Packed
from compress.train.lost import with_lost_linears


@dataclass(frozen=True)
class LowRank:
    """``y = B A x`` with ``ratio`` of the parameters, from the leading singular triples of the dense weight."""

    ratio: float = 0.6

    name: ClassVar[str] = "low-rank"
    any_start: ClassVar[bool] = False

    def begin(self, model: PreTrainedModel, names: Iterable[str]) -> None:
        """See :class:`~compress.train.layers.base.Layers`."""
        wanted = set(names)
        with_lost_linears(
            model, ratio=self.ratio, columns=0.0, gamma=1.0, activation=False, wanted=wanted.__contains__
        )

    def after_step(self, done: float) -> None:
        """Nothing."""

    def finish(self, model: PreTrainedModel) -> dict[str, Packed]:
        """Nothing: the factors are linear layers."""
        return {}


@dataclass(frozen=True)
class Lost(LowRank):
    """LOST (arXiv:2508.02668, eq. 5): see :class:`~compress.models.lost_linear.LostLinear`."""

    columns: float = 0.05
    gamma: float = 0.5

    name: ClassVar[str] = "lost"

    def begin(self, model: PreTrainedModel, names: Iterable[str]) -> None:
        """See :class:`~compress.train.layers.base.Layers`."""
        wanted = set(names)
        with_lost_linears(
            model, ratio=self.ratio, columns=self.columns, gamma=self.gamma, wanted=wanted.__contains__
        )
