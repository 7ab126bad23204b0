"""Measured slopes: how much the predicted losses of alike units are off, by a few probes of the true divergence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from compress.allocate.candidates import DENSE
from compress.allocate.divergence import DivergenceMeter
from compress.allocate.problem import BudgetProblem, group_of, near
from compress.allocate.trial_weights import Losses, TrialWeights
from compress.allocate.units import GONE, Unit

_RANGE = (0.1, 100.0)
"""Slopes outside of it are noise."""
_SHARE = 4
"""One of so many blocks may be left out."""
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


def measured_removals(
    meter: DivergenceMeter, units: Sequence[Unit], trials: TrialWeights
) -> dict[int, float]:
    """Block → the true divergence without it, of the quarter of the blocks that matter least to second order.

    Blocks whose weights are in units with those of other blocks stay.
    """
    blocks: dict[int, list[Unit]] = {}
    for unit in units:
        if unit.block is not None:
            blocks.setdefault(unit.block, []).append(unit)
    joined = {view.block for unit in units if unit.block is None for view in unit.views}
    known = {
        block: loss for block in blocks if block not in joined and (loss := trials.removal(block)) is not None
    }
    least = sorted(known, key=lambda block: known[block])[: len(blocks) // _SHARE]
    return {
        block: max(0.0, meter.mean({unit.name: GONE for unit in blocks[block]})) for block in sorted(least)
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
