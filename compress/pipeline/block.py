"""One loaded block from dense to written: transform it, then observe, solve and write its weights stage by stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compress.allocate.sensitivity import input_needs
from compress.calibrate.stream import BlockStream
from compress.checkpoint.writer import Writer
from compress.linalg.factor_cache import FactorCache
from compress.pipeline.activations import calibrate_cache, calibrate_inputs
from compress.pipeline.block_forward import BlockRun
from compress.pipeline.block_shares import DealtTraining, can_train_together, training_batches
from compress.pipeline.job import Job
from compress.pipeline.shared_scales import with_shared_scales
from compress.pipeline.weight import Attempt, Solved
from compress.planning.parts import parts_of
from compress.planning.plan import PlannedWeight
from compress.score.statistics import Statistics
from compress.solvers.base import BlockProblem
from compress.system.monitor import return_free_memory
from compress.transforms.apply import transform_block

_OUTPUT_DAMPING = 0.1
"""Added to the diagonal of the metric of a block's output, relative to its mean."""


@dataclass
class BlockJob:
    """What is done to block ``index``, which is loaded; ``stream`` is None where nothing looks at data."""

    job: Job
    writer: Writer
    index: int
    stream: BlockStream | None
    _held: dict[str, tuple[PlannedWeight, Attempt]] = field(default_factory=dict)
    """Weights that wait for a solver of the whole block."""
    _factors: FactorCache = field(default_factory=FactorCache)
    """Factorisations for the inputs of the weight that is being solved."""

    def carry_out(self) -> dict[str, Any]:
        """Solve and write all weights of the block; their records by name."""
        planned = self.job.plan.block(self.index)
        transformed = self._transform(planned)
        planned = with_shared_scales(self.job.skeleton, planned)
        if self.stream is not None:
            calibrate_inputs(self.job, self.writer, self.stream, self.index, planned)
            calibrate_cache(self.job, self.writer, self.stream, self.index)
        stages = self._stages(planned)
        dense = self._dense_parameters() if len(stages) > 1 else None
        records: dict[str, Any] = {}
        parts = self._parts(stages)
        # Of a single stage every part sees the block as it is before the first; those of a later stage feed none of their own.
        waits = len(stages) == 1 < len(parts)
        for part in parts:
            last = part is parts[-1]
            statistics = self._observe(part, dense, last=last)
            return_free_memory()
            if last:
                dense = None
            records |= self._solve_stage(part, statistics, put=not waits)
        for weight in planned if waits else ():
            self.job.put_written(self.writer, weight)
        for together in _alike(self._held.values()):
            for weight, attempt in self._solve_together(together):
                records[weight.name] = self.job.write(self.writer, weight, attempt.pack())
        for name, state in transformed.items():
            records[name]["info"]["transform"] = state
        return records

    def _transform(self, planned: tuple[PlannedWeight, ...]) -> dict[str, str]:
        """Transform the block and write the vectors that this may change; weight → whether it was, in words."""
        job = self.job
        if not job.plan.transforms or not planned or self.stream is None:
            return {}
        with job.step("transform"):
            structures = {weight.name: weight.methods.structure for weight in planned}
            vectors = job.rewritten(self.index)
            done = transform_block(
                job.skeleton,
                self.stream,
                self.index,
                structures,
                job.plan.transforms,
                frozenset(vectors),
                {weight.name: weight.activations for weight in planned},
            )
        read = job.skeleton.source.read
        self.writer.put({disk: done.disk_values(name, read(disk)) for name, disk in vectors.items()})
        return done.states

    def _stages(self, planned: tuple[PlannedWeight, ...]) -> list[tuple[PlannedWeight, ...]]:
        """The weights that are solved on one set of statistics: all of the block, or stage by stage."""
        if not self.job.plan.recipe.true_sequential or self.stream is None:
            return [planned]
        by_name = {weight.name: weight for weight in planned}
        of_block = self.job.skeleton.stages(self.index)
        stages = [tuple(by_name[v.name] for v in stage if v.name in by_name) for stage in of_block]
        # Dense activations move on behind a block of which nothing is compressed, too.
        return [stage for stage in stages if stage] or [()]

    def _parts(self, stages: list[tuple[PlannedWeight, ...]]) -> list[tuple[PlannedWeight, ...]]:
        """What is observed and solved together: the stages, each in parts where a bound of memory asks for it."""
        passes = self.job.plan.economy.passes
        if passes == 1 or self.stream is None:
            return stages
        needs = input_needs(self.job.plan)
        found: list[tuple[PlannedWeight, ...]] = []
        for stage in stages:
            by_name = {weight.name: weight for weight in stage}
            parts = parts_of(self.job.skeleton, [weight.view for weight in stage], needs, passes)
            found += [tuple(by_name[view.name] for view in part) for part in parts]
        return found

    def _dense_parameters(self) -> dict[str, Tensor] | None:
        """The block's dense parameters, for the dense activations: when later stages run, some weights are compressed."""
        if not self.job.plan.needs_dense:
            return None
        block = self.job.skeleton.block_module(self.index)
        return {name: parameter.detach().clone() for name, parameter in block.named_parameters()}

    def _observe(
        self, stage: tuple[PlannedWeight, ...], dense: dict[str, Tensor] | None, *, last: bool
    ) -> dict[str, Statistics]:
        """Statistics of a stage's inputs; with the ``last`` one the dense activations move on behind the block."""
        if self.stream is None:
            return {}
        with self.job.step("observe"):
            names = {weight.name for weight in stage}
            needs = input_needs(self.job.plan)
            weights = self.job.sensitivity.token_weights(stage, self.stream.windows, self.stream.device)
            return self.stream.observe(
                self.index,
                needs,
                only=names,
                dense_parameters=dense,
                token_weights=weights,
                advance_dense=last and self.job.plan.needs_dense,
            )

    def _solve_stage(
        self, stage: tuple[PlannedWeight, ...], statistics: dict[str, Statistics], *, put: bool = True
    ) -> dict[str, Any]:
        """Solve the weights of a stage one by one and write them, or hold them for the solvers of the whole block."""
        records: dict[str, Any] = {}
        order, dealt = _solving_order(stage, statistics), dict[str, Attempt | Solved]()
        if self.job.ranks is not None:
            dealt = self.job.deal(order, statistics, self.job.ranks)
        for weight in order:
            found = dealt.pop(weight.name, None) or self.job.solve(weight, statistics, self._factors)
            seen = statistics.pop(weight.name, None)
            if not any(other is seen for other in statistics.values()):
                self._factors.clear()
            if isinstance(found, Attempt) and weight.methods.block_solvers and self.stream is not None:
                self._held[weight.name] = (weight, found)
                weight.view.put(self.job.skeleton.parameter_of(weight.view), found.solution.theta)
            else:
                solved = found.pack() if isinstance(found, Attempt) else found
                records[weight.name] = self.job.write(self.writer, weight, solved, put=put)
                del solved
            del found, seen
            return_free_memory()
        return records

    def _output_costs(self) -> tuple[Tensor | None, list[Tensor] | None]:
        """The metric of the block's output and the weights of its tokens by batch, where gradients have told them."""
        assert self.stream is not None
        costs = self.job.sensitivity.output_costs(self.index, self.stream.windows, self.stream.device)
        if costs is None or float(costs[0].trace()) <= 0:
            return None, None
        return _with_damping(costs[0]), self.stream.by_batch(costs[1])

    def _problem(self, held: list[tuple[PlannedWeight, Attempt]]) -> BlockProblem[Any]:
        """The weights together, on batches that other ranks share where they can."""
        stream, job = self.stream, self.job
        assert stream is not None
        _, parts = training_batches(job.plan, stream.windows, job.ranks)
        run = BlockRun(job.skeleton, stream, self.index, {w.name: w.view for w, _ in held}, parts)
        metric, weights = self._output_costs()
        problems = {weight.name: attempt.problem for weight, attempt in held}
        dealt = None
        if job.ranks is not None and can_train_together(stream, self.index):
            dealt = DealtTraining(job.ranks, run, metric, weights)
        by_batch = (
            None
            if weights is None
            else [torch.cat([weights[part] for part in run.parts_of(batch)]) for batch in range(run.batches)]
        )
        return BlockProblem(problems, run.batches, run, metric, by_batch, dealt)

    def _solve_together(
        self, held: list[tuple[PlannedWeight, Attempt]]
    ) -> list[tuple[PlannedWeight, Attempt]]:
        """Run the block solvers, which are the same for all of these weights."""
        problem = self._problem(held)
        solutions = {weight.name: attempt.solution for weight, attempt in held}
        with self.job.step("solve"):
            for solver in held[0][0].methods.block_solvers:
                solutions = solver.solve(problem, solutions)
            if isinstance(problem.dealt, DealtTraining):
                problem.dealt.close()
        moved = [(weight, attempt.moved_to(solutions[weight.name])) for weight, attempt in held]
        self._factors.clear()
        return moved


def _with_damping(metric: Tensor) -> Tensor:
    """A metric of a block's output whose gradients say little of errors of any size, so that no feature is free."""
    return metric + _OUTPUT_DAMPING * metric.diagonal().mean() * torch.eye(len(metric), device=metric.device)


def _solving_order(
    stage: Iterable[PlannedWeight], statistics: Mapping[str, Statistics]
) -> list[PlannedWeight]:
    """Weights with the most inputs first, as their statistics take the most memory, which later weights can then use; weights
    with the same statistics one after the other, so that they share factorisations."""
    first: dict[int, int] = {}
    for position, weight in enumerate(stage):
        first.setdefault(id(statistics.get(weight.name)), position)
    return sorted(stage, key=lambda w: (-w.view.shape[1], first[id(statistics.get(w.name))]))


def _alike(
    held: Iterable[tuple[PlannedWeight, Attempt]],
) -> list[list[tuple[PlannedWeight, Attempt]]]:
    """Groups of weights with the same block solvers, which solve them together."""
    groups: dict[Any, list[tuple[PlannedWeight, Attempt]]] = {}
    for weight, attempt in held:
        groups.setdefault(weight.methods.block_solvers, []).append((weight, attempt))
    return list(groups.values())
