"""What a search costs beside the run of its recipe, in multiply-adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compress.allocate.problem import group_of
from compress.allocate.units import Choice, Unit
from compress.solvers.gptq import GPTQ


@dataclass(frozen=True)
class SearchSize:
    """How much a search and its run look at.

    Attributes:
        seen: tokens of the backward pass.
        judged: tokens on which errors are measured.
        held_out: tokens of the true divergence.
        trials: allocations that the refinement measures.
        run: calibration tokens of the run.
    """

    seen: int
    judged: int
    held_out: int
    trials: int
    run: int


def relative_cost(units: Sequence[Unit], blocks: int, size: SearchSize) -> float:
    """Multiply-adds of a search over those of the run that follows it.

    A pass over a token costs the parameters of the blocks, a backward twice that; GPTQ on a weight ``[out, in]`` costs ``in³``
    for its factor and ``out · in²`` for each range of the grid that it tries. The run is counted with one pass over its tokens;
    it makes several, layer by layer and of the dense model, so that the search costs less beside it than is said.
    """
    inside = [unit for unit in units if unit.block is not None]
    parameters = sum(unit.numel for unit in units)
    shapes = [view.shape for unit in inside for view in unit.views]
    factors = sum(columns**3 for _, columns in shapes)
    ranges = GPTQ().fits
    run = 2 * size.run * parameters + factors + sum(ranges * out * columns**2 for out, columns in shapes)
    candidates = sum(len(unit.every) - 1 for unit in inside)
    solved = sum(_trial(choice) for unit in inside for choice in unit.every)
    judged = sum(size.judged * unit.numel * (len(unit.every) - 1) for unit in inside)
    outside = sum(len(unit.choices) for unit in units if unit.block is None)
    groups = len({group_of(unit, blocks) for unit in inside})
    measured = (1 + outside + groups + blocks // 4 + size.trials) * size.held_out * parameters
    search = 3 * size.seen * parameters + factors + solved + judged + measured
    return search / max(1, run) if candidates else 0.0


def _trial(choice: Choice) -> float:
    """Solving one candidate for a comparison."""
    if choice.candidate is None:
        return 0.0
    shapes = [weight.view.shape for weight in choice.weights]
    return choice.candidate.trial_cost * sum(out * columns**2 for out, columns in shapes)
