"""Redundancy: rows of a weight that point the same way."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.diagnose.base import ByRole, Entry, Finding, percent
from compress.models.views import WeightView
from compress.score.statistics import Statistics

ROWS = 1024
"""Rows of a weight that are compared, evenly spaced."""
ALIKE = 0.9
WORTH = 0.02
LIKEST = 1 - 1e-6
"""A cosine that twins are held to, whose energy has no bound."""


class Redundancy(Entry):
    """The share of rows (neurons) with a twin, ``|cos| ≥ .9``, the mean ``|cos|`` and the hyperspherical energy.

    The energy is that of Liu et al. (2018) for s = 0, ``mean log ‖ŵᵢ − ŵⱼ‖⁻¹``, above that of pairs at right angles. Both are
    relative to what rows of random directions have: 1 is as even as chance, more is crowded.
    """

    name = "redundancy"

    def __init__(self) -> None:
        self._seen = ByRole()

    def see_weight(self, view: WeightView, weight: Tensor, inputs: Statistics | None) -> None:
        """Keep the cosines between rows of a weight fp32 ``[out, in]``, at most :data:`ROWS` of them."""
        rows = weight[:: max(1, -(-weight.shape[0] // ROWS))]
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)
        signed = (rows @ rows.T).fill_diagonal_(0)
        energies = -0.5 * torch.log1p(-signed.clamp(-LIKEST, LIKEST))
        cosines = signed.abs_()
        # Of random rows: |cos| is that of a Gaussian with variance 1 / in, and the energy is a quarter of that variance.
        expected = (2 / (torch.pi * weight.shape[1])) ** 0.5
        count = max(1, len(rows) - 1)
        self._seen.add(
            view,
            float((cosines.amax(1) >= ALIKE).float().mean()),
            float(cosines.sum(1).mean() / count / expected),
            float(energies.sum(1).mean() / count * 4 * weight.shape[1]),
        )

    def finish(self) -> Finding:
        """The table by kind of weight, and whether width pruning may merge neurons."""
        role, block, most = self._seen.largest(0)
        advice = (
            f"{percent(most)} of the rows of {role} in block {block} have a twin: width pruning may merge them at little loss."
            if most >= WORTH
            else "Hardly any two rows point the same way: width pruning removes what nothing else does, so heal after it."
        )
        columns = ("weight", "rows with a twin", "mean |cos| / random", "energy / random", "most at block")
        return Finding(self.name, "Redundancy of neurons", columns, self._seen.rows(0), advice)
