"""Spectrum: how much of a weight lies in few singular directions."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.diagnose.base import ByRole, Entry, Finding, percent
from compress.models.views import WeightView
from compress.score.statistics import Statistics

EXACT = 1024
"""Rows or columns up to which all singular values are computed; of larger weights a random projection to as many."""
SHARE = 0.25
LOW_RANK = 0.9


class Spectrum(Entry):
    """The stable rank ``‖W‖²_F / σ₁²`` relative to the full rank, and the energy of the largest quarter of singular values."""

    name = "spectrum"

    def __init__(self) -> None:
        self._seen = ByRole()

    def see_weight(self, view: WeightView, weight: Tensor, inputs: Statistics | None) -> None:
        """Keep the stable rank and the energy of the first singular values of a weight fp32 ``[out, in]``."""
        energies = squared_singular_values(weight)
        total, count = float(energies.sum()), len(energies)
        top = float(energies[: max(1, round(SHARE * count))].sum())
        self._seen.add(view, total / max(float(energies[0]), 1e-30) / count, top / max(total, 1e-30))

    def finish(self) -> Finding:
        """The table by kind of weight, and where low rank pays."""
        means = self._seen.means()
        good = [role for role, (_, energy) in means.items() if energy >= LOW_RANK]
        advice = (
            f"A quarter of the ranks holds at least {percent(LOW_RANK)} of {', '.join(good)}: low rank pays there."
            if good
            else f"A quarter of the ranks holds at most {percent(max(energy for _, energy in means.values()))} of any kind of "
            "weight: low rank alone loses more than fewer bits or zeros of the same size."
        )
        columns = ("weight", "stable rank / rank", "energy of the first quarter", "most at block")
        return Finding(self.name, "Spectrum of the weights", columns, self._seen.rows(1), advice)


def squared_singular_values(weight: Tensor) -> Tensor:
    """Falling; of a weight wider and higher than ``EXACT`` those of a random projection, whose sum is right on average."""
    matrix = weight if weight.shape[0] <= weight.shape[1] else weight.T
    if matrix.shape[0] > EXACT:
        generator = torch.Generator().manual_seed(0)
        sketch = torch.randn(EXACT, matrix.shape[0], generator=generator) / EXACT**0.5
        matrix = sketch.to(matrix) @ matrix
    return torch.linalg.eigvalsh(matrix @ matrix.T).flip(0).clamp_min(0)
