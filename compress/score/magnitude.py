"""Every element costs the same: ``‖Δ‖²``. Needs no data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compress.score.metric import Kron, Metric
from compress.score.statistics import Statistics


@dataclass(frozen=True)
class Magnitude:
    """The identity metric."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def metric(self, statistics: Statistics) -> Metric:
        """The identity: every element costs the same."""
        return Kron()
