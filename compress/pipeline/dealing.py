"""Dealing: the weights of a block solved by several ranks. The first reads, observes and writes; others solve what it sends.

A weight is solved by the same code on the same numbers wherever that is, so the output is that of one process, byte for byte.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from compress.errors import UserError
from compress.linalg.factor_cache import FactorCache
from compress.pipeline.weight import Attempt, Solved, solve_weight
from compress.planning.methods import Methods
from compress.planning.plan import Plan, PlannedWeight
from compress.score.statistics import Statistics
from compress.solvers.base import Problem, Solution
from compress.structures.base import CompressedWeight
from compress.system.orders import Place
from compress.system.ranks import Ranks

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """A weight to solve, with all that decides the result.

    Attributes:
        name: of the weight.
        methods: structure, score and solvers.
        weight: fp32 ``[out, in]``.
        statistics: of its inputs.
        seed: of the run.
    """

    name: str
    methods: Methods
    weight: Tensor
    statistics: Statistics
    seed: int

    def solve(self, factors: FactorCache) -> Attempt:
        """Run the solvers; ``factors`` holds what was factorised for earlier weights of the same inputs."""
        metric = self.methods.score.metric(self.statistics)
        return solve_weight(self.methods, self.weight, self.statistics, metric, self.seed, factors)

    def outcome(self, factors: FactorCache) -> Attempt | Solved:
        """The weight solved, and packed where no solver of the whole block comes after."""
        attempt = self.solve(factors)
        return attempt if self.methods.block_solvers else attempt.pack()

    def taken_over(self, done: Done) -> Attempt | Solved:
        """What another rank has solved, as if it had been solved here."""
        if isinstance(done.result, CompressedWeight):
            return Solved(done.result, done.record, self.weight)
        metric = self.methods.score.metric(self.statistics)
        problem = Problem(
            self.weight,
            self.methods.structure,
            metric,
            self.statistics,
            self.seed,
            true_input=done.true_input,
        )
        return Attempt(problem, done.result, done.record)


@dataclass(frozen=True)
class Done:
    """What comes back of a task: the packed weight; or the solution where solvers of the whole block go on from it, and with it
    ``true_input``, the problem's target."""

    name: str
    result: CompressedWeight | Solution
    record: dict[str, Any]
    true_input: Tensor | None = None


@dataclass(frozen=True)
class Tasks:
    """The order to solve some weights; :class:`Done` for each comes back."""

    tasks: Sequence[Task]

    def carry_out(self, place: Place) -> list[Done]:
        """Solve them.

        Raises:
            UserError: one cannot be solved.
        """
        factors, done = FactorCache(), list[Done]()
        for task in self.tasks:
            _LOG.info("solving %s", task.name)
            found = _moved(task, place.device).outcome(factors)
            if isinstance(found, Solved):
                done.append(Done(task.name, found.packed, found.record))
            else:
                done.append(Done(task.name, found.solution, found.record, found.problem.true_input))
        return done


def deal(
    weights: Sequence[PlannedWeight], statistics: Mapping[str, Statistics], ranks: int
) -> list[list[PlannedWeight]]:
    """Weights by rank, so that the longest share is short. Weights of one input stay together where there are enough inputs:
    their statistics are sent once, and factorised once.

    Args:
        weights: what is solved on one set of statistics.
        statistics: of their inputs, by name; the same object for the same input.
        ranks: how many share the work.
    """
    groups: dict[int, list[PlannedWeight]] = {}
    for place, weight in enumerate(weights):
        seen = statistics.get(weight.name)
        groups.setdefault(-1 - place if seen is None else id(seen), []).append(weight)
    units = list(groups.values()) if len(groups) >= ranks else [[weight] for weight in weights]
    shares: list[list[PlannedWeight]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for unit in sorted(units, key=lambda unit: -sum(map(_cost, unit))):
        least = loads.index(min(loads))
        shares[least] += unit
        loads[least] += sum(map(_cost, unit))
    return shares


def _cost(weight: PlannedWeight) -> int:
    """Multiplications of a solver that goes through the columns, or through the elements where nothing is known of inputs."""
    return weight.numel * (weight.view.shape[1] if weight.needs else 1)


def check_work(plan: Plan, ranks: Ranks | None) -> None:
    """Refuse ranks that no block has work for.

    Raises:
        UserError: there are more ranks than weights in a block that can be solved apart.
    """
    if ranks is None:
        return
    apart: dict[int, int] = {}
    for weight in plan.weights:
        if weight.view.block is not None:
            apart[weight.view.block] = apart.get(weight.view.block, 0) + 1
    most = max(apart.values(), default=0)
    if most < 2:
        raise UserError("no block of this run has weights that can be solved apart: run it in one process")
    if ranks.size > most:
        raise UserError(
            f"{ranks.size} ranks are more than the {most} weights that a block has to solve: start at most {most}"
        )


def _moved(task: Task, device: torch.device) -> Task:
    """A task with its tensors on a device."""
    if device.type == "cpu":
        return task
    moments: dict[str, Any] = {
        name: value.to(device) for name, value in vars(task.statistics).items() if isinstance(value, Tensor)
    }
    return replace(task, weight=task.weight.to(device), statistics=replace(task.statistics, **moments))
