"""What a score is: it turns statistics into a metric."""

from __future__ import annotations

from typing import Protocol

from compress.score.metric import Metric
from compress.score.statistics import Statistics


class Score(Protocol):
    """Says which statistics it reads and what metric they make."""

    @property
    def needs(self) -> frozenset[str]:
        """The statistics that it reads, by the names of :data:`compress.score.statistics.NEEDS`."""
        ...

    def metric(self, statistics: Statistics) -> Metric:
        """The metric over an error ``Δ [out, in]``."""
        ...
