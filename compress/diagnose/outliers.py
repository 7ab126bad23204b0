"""Outliers: how far the loudest inputs of a weight stand out."""

from __future__ import annotations

from torch import Tensor

from compress.diagnose.base import ByRole, Entry, Finding
from compress.models.views import WeightView
from compress.score.statistics import Statistics

LOUD = 30.0
SMOOTH = 10.0


class Outliers(Entry):
    """The largest input relative to the root mean square, the loudest channel's share of the energy, and the kurtosis."""

    name = "outliers"
    needs = frozenset({"diagonal", "max_abs", "sample"})

    def __init__(self) -> None:
        self._seen = ByRole()

    def see_weight(self, view: WeightView, weight: Tensor, inputs: Statistics | None) -> None:
        """Keep how far the loudest inputs of a weight stand out; nothing for a weight that no token reached."""
        if (
            inputs is None
            or not inputs.tokens
            or inputs.diagonal is None
            or inputs.max_abs is None
            or inputs.sample is None
        ):
            return
        energy = inputs.diagonal.double()
        peak = float(inputs.max_abs.max() / energy.mean().sqrt().clamp_min(1e-30))
        values = inputs.sample.double()
        second = values.square().mean().clamp_min(1e-300)
        kurtosis = float(values.pow(4).mean() / second.square())
        self._seen.add(view, peak, float(energy.max() / energy.sum().clamp_min(1e-300)), kurtosis)

    def finish(self) -> Finding:
        """The table by kind of weight, and what 8-bit activations need."""
        role, block, peak = self._seen.largest(0)
        where = f"n input of {role} in block {block} reaches {peak:.0f} times the root mean square: "
        if peak >= LOUD:
            advice = f"A{where}8-bit activations need a rotation or SmoothQuant first, and static ranges a percentile."
        elif peak >= SMOOTH:
            advice = f"A{where}round activations by token, not by tensor, and smooth where they have 8 bits."
        else:
            advice = f"At most a{where}activations can be rounded to 8 bits as they are."
        columns = ("inputs of", "largest / rms", "energy of the loudest channel", "kurtosis", "most at block")
        return Finding(self.name, "Outliers of the inputs", columns, self._seen.rows(0), advice)
