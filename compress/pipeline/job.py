"""The fixed facts of a run, and the two steps for a weight whose parameter is loaded: solve it, write it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from compress.allocate.sensitivity import Sensitivity
from compress.checkpoint.writer import Writer
from compress.linalg.factor_cache import FactorCache
from compress.models.skeleton import Skeleton
from compress.models.source_weights import SourceWeights, distance
from compress.pipeline.dealing import Done, Task, Tasks, deal
from compress.pipeline.outliers import outlier_of
from compress.pipeline.weight import NOTHING_SEEN, Attempt, Solved
from compress.planning.plan import Plan, PlannedWeight
from compress.score.rotated import in_rounded_basis
from compress.score.statistics import Statistics
from compress.system.monitor import Monitor
from compress.system.orders import answer
from compress.system.progress import Progress
from compress.system.ranks import Ranks


def timed_step(progress: Progress, monitor: Monitor, name: str) -> AbstractContextManager[None]:
    """Show and time everything inside as the step ``name``."""
    progress.step(name)
    return monitor.step(name)


@dataclass(frozen=True)
class Job:
    """The fixed facts of a run."""

    skeleton: Skeleton
    plan: Plan
    device: torch.device
    dtype: torch.dtype
    seed: int
    monitor: Monitor
    progress: Progress
    sensitivity: Sensitivity
    ranks: Ranks | None = None

    def step(self, name: str) -> AbstractContextManager[None]:
        """Show and time everything inside as the step ``name``."""
        return timed_step(self.progress, self.monitor, name)

    def dense_bytes(self, planned: PlannedWeight) -> int:
        """Bytes of a weight in the source: the unit of progress."""
        return planned.numel * self.plan.facts.headers[planned.view.sources[0]].dtype.itemsize

    def rewritten(self, index: int | None) -> dict[str, str]:
        """Parameter → disk tensor of the vectors of block ``index`` that a transform may change."""
        if index is None:
            return {}
        prefix = self.skeleton.blocks[index] + "."
        return {name: disk for name, disk in self.plan.rewritten.items() if name.startswith(prefix)}

    def solve(
        self, planned: PlannedWeight, statistics: Mapping[str, Statistics], factors: FactorCache
    ) -> Attempt:
        """Run the solvers of a weight whose parameter is loaded, over the statistics of its inputs by name."""
        with self.step("solve"):
            return self.task(planned, statistics).solve(factors)

    def task(self, planned: PlannedWeight, statistics: Mapping[str, Statistics]) -> Task:
        """A weight whose parameter is loaded, and all that decides what its solvers find."""
        parameter = self.skeleton.parameter_of(planned.view)
        seen = self.sensitivity.complete(planned, statistics.get(planned.name, NOTHING_SEEN), self.device)
        if (importance := self.plan.importance.get(planned.name)) is not None:
            seen = replace(seen, importance=importance.to(self.device))
        # Solvers of the whole block come back to the dense weight when the parameter holds what was solved so far.
        copied = bool(planned.methods.block_solvers)
        weight = planned.view.get(parameter.detach()).to(torch.float32, copy=copied)
        weight, seen = planned.in_rounded_basis(weight), in_rounded_basis(seen, planned.activations)
        return Task(planned.name, planned.methods, weight, seen, self.seed)

    def deal(
        self, stage: Sequence[PlannedWeight], statistics: Mapping[str, Statistics], ranks: Ranks
    ) -> dict[str, Attempt | Solved]:
        """Solve weights with all ranks; name → result, packed where no solver of the whole block comes after.

        Raises:
            UserError: a rank has ended, or a weight cannot be solved.
        """
        own, *others = deal(stage, statistics, ranks.size)
        with self.step("solve"):
            busy = [rank for rank, share in enumerate(others, start=1) if share]
            for rank in busy:
                ranks.send(rank, Tasks([self.task(weight, statistics) for weight in others[rank - 1]]))
            factors = FactorCache()
            found = {weight.name: self.task(weight, statistics).outcome(factors) for weight in own}
            factors.clear()
            by_name = {weight.name: weight for weight in stage}
            for rank in busy:
                results: list[Done] = answer(ranks, rank)
                for done in results:
                    found[done.name] = self.task(by_name[done.name], statistics).taken_over(done)
        return found

    def write(
        self, writer: Writer, planned: PlannedWeight, solved: Solved, *, put: bool = True
    ) -> dict[str, Any]:
        """Write a solved weight, put the values that a loader will decode into the parameter, and return its record.

        Without ``put`` the parameter stays dense, and :meth:`put_written` is called when the block's last weight is solved.
        """
        parameter = self.skeleton.parameter_of(planned.view)
        outlier = outlier_of(solved.weight)
        with self.step("write"):
            stored = self.plan.exporter.save(planned, solved.packed, writer, self.plan.facts)
            dense = planned.in_rounded_basis(stored.dense(parameter.dtype))
            # Before the weight is put in place: in fp32 the problem's weight is the parameter itself.
            distance_of = self._distance(planned, solved, dense)
            if put:
                planned.view.put(parameter, dense)
        if solved.record["fallback"]:
            self.progress.note(f"{planned.name}: {solved.record['fallback']}")
        self.progress.weight(planned.name, self.dense_bytes(planned))
        return {**solved.record, "distance": distance_of, "outlier": outlier}

    def put_written(self, writer: Writer, planned: PlannedWeight) -> None:
        """Put the values of a weight that was written into its parameter."""
        parameter = self.skeleton.parameter_of(planned.view)
        stored = self.plan.exporter.load(planned, writer, self.plan.facts)
        planned.view.put(parameter, planned.in_rounded_basis(stored.dense(parameter.dtype)))

    def _distance(self, planned: PlannedWeight, solved: Solved, dense: Tensor) -> float | None:
        """How far a stored weight is from the source's, for :mod:`compress.verification.distances`."""
        source = self.skeleton.source
        given = planned.in_rounded_basis(solved.weight)
        edited = self.plan.transforms or source.width_pruned
        if not edited:
            return distance(dense, given)
        weight = self.source_weights.read(planned.view)
        return None if weight is None else distance(dense, weight)

    @cached_property
    def source_weights(self) -> SourceWeights:
        """The weights before anything was done to them."""
        return SourceWeights(self.skeleton)
