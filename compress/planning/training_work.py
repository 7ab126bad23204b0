"""What trainings compute, as counts: solvers of whole blocks, and healing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compress.planning.methods import build
from compress.recipe.heal import Heal
from compress.recipe.trials import LADDER, trial_steps
from compress.solvers.base import split_batches

_OF_NORMS = frozenset({"norms"})
"""What is trained without the gradient of a matrix."""


@dataclass(frozen=True)
class BlockRuns:
    """How often a solver of whole blocks runs a block on a batch.

    Attributes:
        trained: with gradients.
        judged: without.
    """

    trained: int
    judged: int


def block_runs(solver: Any, batches: int) -> BlockRuns:
    """The runs of a solver's training, from its options ``iterations`` or ``steps``, ``checks``, ``judged`` and ``rows``.

    Exact for the solvers that come with the library.

    Args:
        solver: of whole blocks.
        batches: into which the calibration windows are divided.
    """
    turns = max(1, round(1 / getattr(solver, "rows", 1.0)))
    steps = int(getattr(solver, "iterations", None) or getattr(solver, "steps", 0) or 0)
    steps = max(1, steps // turns) if steps else 0
    checks = int(getattr(solver, "checks", 1))
    _, judge = split_batches(batches, float(getattr(solver, "judged", 0.125)))
    checked = {max(1, round(steps * (1 - i / (2 * checks)))) for i in range(checks)}
    # The start is judged, too.
    return BlockRuns(turns * steps, turns * (1 + len(checked)) * len(judge))


def windows_of(solvers: tuple[Any, ...], samples: int, length: int) -> int:
    """Calibration windows in a batch of a run with these solvers of whole blocks: the fewest that one of them asks for."""
    return min(samples, max(1, min(int(solver.tokens) for solver in solvers) // length))


@dataclass(frozen=True)
class HealingRuns:
    """Tokens that healing runs the models on, where no patience ends it before its last step.

    Attributes:
        trained: of steps, those of trials of the rate included.
        held_out: in all measurements.
        first: of one measurement, on which the teacher is asked once.
        forwards: passes of the student for a trained token; a backward for one by inputs, one by weights.
        teachers: dense models.
        steps: in all.
    """

    trained: int
    held_out: int
    first: int
    forwards: float
    teachers: int
    steps: int

    @property
    def passes(self) -> float:
        """Forwards of a whole model, of the student and of the dense ones."""
        return self.trained * (self.forwards + self.teachers) + self.held_out + self.first


def healing_runs(heal: Heal) -> HealingRuns:
    """What healing takes; ``rate: auto`` as if every rate of the ladder were tried.

    Args:
        heal: of a recipe.
    """
    steps = heal.steps
    trials = trial_steps(steps) if heal.rate == "auto" else 0
    tried = len(LADDER) if trials else 0
    every = steps + tried * trials
    measured = 1 + min(heal.evaluations, steps) + tried
    first = heal.holdout * heal.length
    if hasattr(build("optimizer", heal.optimizer), "step_forward"):
        forwards = 2.0
    else:
        by_weights = not {method.name for method in heal.train} <= _OF_NORMS
        forwards = 2.0 + by_weights + heal.checkpointing
    return HealingRuns(
        every * heal.batch * heal.length,
        measured * first,
        first,
        forwards,
        1 + len(heal.teachers),
        every,
    )
