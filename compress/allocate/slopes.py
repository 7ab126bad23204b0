"""Measured slopes: how much the predicted losses of alike units are off, by a few probes of the true divergence."""

from __future__ import annotations

from collections.abc import Callable

from compress.allocate.candidates import DENSE
from compress.allocate.divergence import DivergenceMeter
from compress.allocate.problem import BudgetProblem, group_of, near
from compress.allocate.trial_weights import Losses
from compress.allocate.units import Unit

_RANGE = (0.1, 100.0)
"""Slopes outside of it are noise."""
_PROBE_BITS = 3.5
"""Bits at which probes are taken at most: with more their divergence is lost in the rounding of the arithmetic."""


def measured_losses(meter: DivergenceMeter, units: list[Unit]) -> Losses:
    """Losses of units outside the blocks: the true divergence with each candidate alone."""
    return {
        unit.name: {
            choice.label: 0.0 if choice.label == DENSE else max(0.0, meter.mean({unit.name: choice.label}))
            for choice in unit.choices
        }
        for unit in units
    }


def measured_slopes(
    meter: DivergenceMeter,
    problem: BudgetProblem,
    bits: float,
    probed: Callable[[str], None] = lambda group: None,
) -> dict[str, float]:
    """Group of units → true divergence over predicted loss, with the units of this group alone compressed.

    Args:
        meter: of the true divergence.
        problem: with predicted losses.
        bits: about which each number of the model takes under the budget.
        probed: called after each probe.
    """
    groups: dict[str, list[Unit]] = {}
    for unit in problem.units:
        if unit.block is not None and len(unit.choices) > 1:
            groups.setdefault(group_of(unit, problem.blocks), []).append(unit)
    slopes: dict[str, float] = {}
    for group, units in groups.items():
        probe = {unit.name: near(unit, min(bits, _PROBE_BITS)) for unit in units}
        predicted = sum(problem.losses[name][label] for name, label in probe.items())
        if predicted > 0:
            slopes[group] = min(max(meter.mean(probe) / predicted, _RANGE[0]), _RANGE[1])
        probed(group)
    return slopes
