"""A run's fixed facts, and what is done to one weight whose parameter is loaded: solve it, write it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from compress.allocate.sensitivity import Sensitivity
from compress.checkpoint.writer import Writer
from compress.linalg.factor_cache import FactorCache
from compress.models.skeleton import Skeleton
from compress.pipeline.weight import NOTHING_SEEN, Attempt, solve_weight
from compress.planning.plan import Plan, PlannedWeight
from compress.score.statistics import Statistics
from compress.system.monitor import Monitor
from compress.system.progress import Progress


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

    def step(self, name: str) -> AbstractContextManager[None]:
        """Show and time everything inside as the step ``name``."""
        return timed_step(self.progress, self.monitor, name)

    def dense_bytes(self, planned: PlannedWeight) -> int:
        """Bytes of a weight in the source, by which progress is told."""
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
        parameter = self.skeleton.parameter_of(planned.view)
        seen = self.sensitivity.complete(planned, statistics.get(planned.name, NOTHING_SEEN), self.device)
        with self.step("solve"):
            # Solvers of the whole block come back to the dense weight when the parameter holds what was solved so far.
            copied = bool(planned.methods.block_solvers)
            weight = planned.view.get(parameter.detach()).to(torch.float32, copy=copied)
            metric = planned.methods.score.metric(seen)
            return solve_weight(planned.methods, weight, seen, metric, self.seed, factors)

    def write(self, writer: Writer, planned: PlannedWeight, attempt: Attempt) -> dict[str, Any]:
        """Write a solved weight and put what a loader will find in its place; its record."""
        parameter = self.skeleton.parameter_of(planned.view)
        solved = attempt.pack()
        with self.step("write"):
            stored = self.plan.exporter.save(planned, solved.packed, writer, self.plan.facts)
            planned.view.put(parameter, stored.dense(parameter.dtype))
        if solved.record["fallback"]:
            self.progress.note(f"{planned.name}: {solved.record['fallback']}")
        self.progress.weight(planned.name, self.dense_bytes(planned))
        return solved.record
