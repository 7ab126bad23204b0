"""Are the packed values those of this source? Every weight's distance from it, computed anew and held against the record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from compress.checkpoint.writer import REPORT
from compress.errors import UserError
from compress.models.source_weights import SourceWeights, distance
from compress.models.views import WeightView
from compress.report.schema import Report

ABSOLUTE, RELATIVE = 4e-3, 2e-2
"""By how much a distance may differ from the recorded one: half precision rounds what was decoded."""


@dataclass(frozen=True)
class Distances:
    """The recorded distances of an output, by weight (:func:`compress.models.source_weights.distance`)."""

    folder: Path
    recorded: Mapping[str, float]

    @classmethod
    def of(cls, folder: Path) -> Distances:
        """Those that the report of ``folder`` holds; none for an output without a report."""
        if not (folder / REPORT).is_file():
            return cls(folder, {})
        weights = Report.read(folder / REPORT).weights
        return cls(
            folder, {weight.name: weight.distance for weight in weights if weight.distance is not None}
        )

    def check(self, view: WeightView, stored: Tensor, source: SourceWeights) -> None:
        """Hold a stored weight ``[out, in]`` against the source's.

        Raises:
            UserError: it is not as far from the source's weight as it was when it was written.
        """
        expected = self.recorded.get(view.name)
        weight = None if expected is None else source.read(view)
        if expected is None or weight is None:
            return
        found = distance(stored, weight)
        if not abs(found - expected) <= ABSOLUTE + RELATIVE * expected:
            raise UserError(
                f"{self.folder}: {view.name} is not the source's weight as it was written: its relative distance from it is "
                f"{found:.3g}, recorded is {expected:.3g}"
            )
