"""Norms: how unlike the rows and columns of a weight are."""

from __future__ import annotations

from torch import Tensor

from compress.diagnose.base import ByRole, Entry, Finding
from compress.models.views import WeightView
from compress.score.statistics import Statistics

SPREAD = 4.0


class Norms(Entry):
    """The largest norm of a row (column) relative to the median one."""

    name = "norms"

    def __init__(self) -> None:
        self._seen = ByRole()

    def see_weight(self, view: WeightView, weight: Tensor, inputs: Statistics | None) -> None:
        """Keep the spread of the norms of rows and columns of a weight fp32 ``[out, in]``."""
        spreads = [
            float(norm.max() / norm.median().clamp_min(1e-30))
            for norm in (weight.norm(dim=1), weight.norm(dim=0))
        ]
        self._seen.add(view, *spreads)

    def finish(self) -> Finding:
        """The table by kind of weight, and which granularity of scales it asks for."""
        (row_role, row_block, row), (column_role, column_block, column) = map(self._seen.largest, (0, 1))
        if row < SPREAD and column < SPREAD:
            advice = (
                f"Rows and columns are alike (within {max(row, column):.1f} times the median): "
                "any granularity of scales will do."
            )
        elif row >= column:
            advice = (
                f"A row of {row_role} in block {row_block} is {row:.1f} times the median one: take scales by channel or group, "
                "not by tensor."
            )
        else:
            advice = (
                f"A column of {column_role} in block {column_block} is {column:.1f} times the median one: small groups or "
                "AWQ's scaling of input channels keep it from spoiling its neighbours."
            )
        columns = ("weight", "largest row / median", "largest column / median", "most at block")
        return Finding(self.name, "Norms of rows and columns", columns, self._seen.rows(0), advice)
