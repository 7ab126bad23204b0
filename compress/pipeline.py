"""The order of the steps: checkpoint → calibrate → score → solve → export, block by block. Nothing else knows it."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from compress.blockwise import BlockRun
from compress.calibrate.corpus import Corpus, load_corpus
from compress.calibrate.stream import BlockStream
from compress.checkpoint.source import Source, open_source, refuse_quantized
from compress.checkpoint.writer import REPORT, Writer
from compress.embedded import EMBEDDED, embedded_model
from compress.evaluation.windows import load_tokenizer
from compress.models.skeleton import Skeleton, open_skeleton
from compress.plan import Plan, PlannedWeight, fingerprint, make_plan
from compress.progress import Progress, Silent
from compress.recipe import Recipe
from compress.report.assemble import RunFacts, assemble, versions
from compress.report.page import render_report
from compress.report.schema import Report
from compress.reshape.block import reshape_block
from compress.reshape.blocks import choose_blocks, without_blocks
from compress.runtime.check import check_logits
from compress.runtime.device import resolve_device, resolve_dtype
from compress.solve.base import BlockProblem
from compress.solving import NOTHING_SEEN, Attempt, Metrics, solve_weight
from compress.survey import Survey, chooses_sizes, input_needs, needs_survey, surveyed
from compress.verify import verify
from compress.watch import Watch, return_free_memory

REST = "rest"
"""The journal's name for the weights outside the blocks."""


@dataclass(frozen=True)
class Result:
    """What a run leaves: the folder, and everything that is known about it."""

    out: Path
    plan: Plan
    report: Report

    def to_json(self) -> dict[str, Any]:
        """Plain data, for scripts."""
        return {"out": str(self.out), "report": self.report.model_dump(mode="json")}


def plan(
    model: str | Path,
    recipe: str | Path | Recipe,
    *,
    samples: int | None = None,
    length: int | None = None,
    settings: Mapping[str, Any] | None = None,
    dtype: str = "auto",
    format: str | None = None,
    trust_remote_code: bool = False,
    data: str | None = None,
    seed: int = 0,
) -> Plan:
    """What :func:`compress` would do, from headers and configuration alone; the arguments are the same.

    Only where a recipe chooses ranks or sparsities by layer the sizes depend on data: then its survey of the dense model
    is made, on the CPU, which takes as long as it takes there.

    Raises:
        UserError: whatever would stop the run before its first weight.
    """
    source = _open(model, trust_remote_code)
    chosen = _recipe(recipe, settings, data=data, samples=samples, length=length)
    skeleton = open_skeleton(source)
    compute = resolve_dtype(dtype, skeleton.model.dtype, "cpu")
    skeleton = _shortened(skeleton, chosen, seed, torch.device("cpu"), compute)
    planned = make_plan(skeleton, chosen, format=format, dtype=compute)
    if not chooses_sizes(planned):
        return planned
    tokens = _corpus(source, chosen, seed).tokens
    here = torch.device("cpu")
    near = Path(tempfile.gettempdir())
    with surveyed(skeleton, planned, tokens, device=here, dtype=compute, seed=seed, near=near) as survey:
        return make_plan(
            skeleton, chosen, format=format, dtype=compute, ranks=survey.ranks, sparsities=survey.sparsities
        )


def compress(
    model: str | Path,
    recipe: str | Path | Recipe,
    out: str | Path,
    *,
    data: str | None = None,
    samples: int | None = None,
    length: int | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    format: str | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Result:
    """Compress a Hugging Face checkpoint and verify what was written.

    Args:
        model: a folder, a hub name, or ``"embedded"`` for the model that ships with the package.
        recipe: a shipped recipe's name, a YAML file, or a :class:`~compress.recipe.Recipe`.
        out: the folder to make. An unfinished run with the same arguments is continued.
        data: calibration text in place of the recipe's: a file, a hub dataset or ``"embedded"``.
        samples, length: how many calibration windows, of how many tokens; the recipe's own if ``None``.
        seed: decides which windows are drawn, and all else that is drawn.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, …: where blocks run and weights are solved.
        dtype: ``"auto"`` (the model's own), ``"bf16"``, ``"fp16"`` or ``"fp32"``: what blocks are computed in.
        format: ``"auto"``, ``"compressed-tensors"``, ``"native"`` or ``"dense"``; the recipe's own if ``None``.
        overwrite: replace ``out`` if it exists, once the new one is verified.
        trust_remote_code: run Python code that comes with the checkpoint.
        settings: changes to the recipe by dotted key, such as ``{"quantize.group": 64}``.
        progress: is told where the run stands.

    Raises:
        UserError: anything that the user can mend, in one sentence; nothing that existed is touched.
    """
    source = _open(model, trust_remote_code)
    chosen = _recipe(recipe, settings, data=data, samples=samples, length=length)
    skeleton = open_skeleton(source)
    target = resolve_device(device)
    compute = resolve_dtype(dtype, skeleton.model.dtype, target.type)
    skeleton = _shortened(skeleton, chosen, seed, target, compute)
    source = skeleton.source
    planned = make_plan(skeleton, chosen, format=format, dtype=compute)
    listener = progress or Silent()
    with ExitStack() as stack:
        watch = stack.enter_context(Watch())
        survey = Survey()
        with watch.step("data"):
            corpus = _corpus(source, chosen, seed) if planned.needs_data or needs_survey(planned) else None
        if corpus is not None and needs_survey(planned):
            listener.step("survey")
            near = Path(out).absolute().parent
            options: dict[str, Any] = {"device": target, "dtype": compute, "seed": seed, "near": near}
            with watch.step("survey"):
                survey = stack.enter_context(surveyed(skeleton, planned, corpus.tokens, **options))
            planned = make_plan(
                skeleton,
                chosen,
                format=format,
                dtype=compute,
                ranks=survey.ranks,
                sparsities=survey.sparsities,
            )
        run = _Run(skeleton, planned, target, compute, seed, watch, listener, corpus, survey=survey)
        identity = fingerprint(planned, source, **run.identity())
        with Writer(out, planned.shards, source=source, fingerprint=identity, overwrite=overwrite) as writer:
            return run.carry_out(writer)


def _open(model: str | Path, trust_remote_code: bool) -> Source:
    path = embedded_model() if str(model) == EMBEDDED else model
    source = open_source(path, trust_remote_code=trust_remote_code)
    refuse_quantized(source)
    return source


def _recipe(recipe: str | Path | Recipe, settings: Mapping[str, Any] | None, **calibrate: Any) -> Recipe:
    given = {f"calibrate.{key}": value for key, value in calibrate.items() if value is not None}
    changes = {**(settings or {}), **given}
    return recipe.with_settings(changes) if isinstance(recipe, Recipe) else Recipe.load(recipe, changes)


def _shortened(
    skeleton: Skeleton, recipe: Recipe, seed: int, device: torch.device, dtype: torch.dtype
) -> Skeleton:
    """The model without the blocks that the recipe drops."""
    if recipe.drop is None:
        return skeleton
    tokens = _corpus(skeleton.source, recipe, seed).tokens
    wanted = recipe.drop
    dropped = choose_blocks(skeleton, tokens, wanted.blocks, wanted.by, device=device, dtype=dtype)
    return open_skeleton(without_blocks(skeleton.source, dropped))


def _corpus(source: Source, recipe: Recipe, seed: int) -> Corpus:
    tokenizer = load_tokenizer(source.path, trust_remote_code=source.trust_remote_code)
    wanted = recipe.calibrate
    return load_corpus(wanted.data, tokenizer, samples=wanted.samples, length=wanted.length, seed=seed)


def _report_files(report: Report, name: str) -> dict[str, str]:
    return {REPORT: report.to_text(), "report.html": render_report(report, [], name=name)}


def _alike(
    held: Iterable[tuple[PlannedWeight, Attempt]],
) -> list[list[tuple[PlannedWeight, Attempt]]]:
    """Weights by their block solvers: those of the same ones are solved together."""
    groups: dict[Any, list[tuple[PlannedWeight, Attempt]]] = {}
    for weight, attempt in held:
        groups.setdefault(weight.methods.block_solvers, []).append((weight, attempt))
    return list(groups.values())


@dataclass
class _Run:
    """One run's fixed facts, and the loop over the blocks."""

    skeleton: Skeleton
    plan: Plan
    device: torch.device
    dtype: torch.dtype
    seed: int
    watch: Watch
    progress: Progress
    corpus: Corpus | None
    notes: list[str] = field(default_factory=list)
    survey: Survey = field(default_factory=Survey)

    def identity(self) -> dict[str, Any]:
        """What decides the output's bytes besides the plan and the source."""
        tokens = b"" if self.corpus is None else self.corpus.tokens.numpy().tobytes()
        return {
            "tokens": hashlib.sha256(tokens).hexdigest(),
            "dtype": str(self.dtype),
            "device": self.device.type,
            "seed": self.seed,
            "versions": versions(),
        }

    def carry_out(self, writer: Writer) -> Result:
        """All steps from the first block to the finished folder."""
        weights = self.plan.weights
        blocks = len(self.skeleton.blocks)
        self.progress.start(blocks, len(weights), sum(self._dense_bytes(weight) for weight in weights))
        try:
            # What an earlier run left is for the screen alone: the report of a continued run is that of an unbroken one.
            for note in writer.notes:
                self.progress.note(note)
            if self.corpus is not None and self.corpus.note:
                self.notes.append(self.corpus.note)
                self.progress.note(self.corpus.note)
            self._rest(writer)
            if self.corpus is not None:
                self._blocks_with_data(writer, self.corpus)
            else:
                for index in range(blocks):
                    self._block(writer, index, None)
            return self._finish(writer)
        finally:
            self.progress.finish()

    def _blocks_with_data(self, writer: Writer, corpus: Corpus) -> None:
        spill = writer.partial.parent
        stream = BlockStream(
            self.skeleton,
            corpus.tokens,
            device=self.device,
            dtype=self.dtype,
            batch_size=self._batch_size(corpus),
            spill_dir=spill,
            dense=self.plan.needs_dense,
        )
        with stream:
            with self._step("embed"):
                stream.prepare()
            last = len(self.skeleton.blocks) - 1
            for index in range(last + 1):
                self._block(writer, index, stream, advance=index < last)

    def _block(
        self, writer: Writer, index: int, stream: BlockStream | None, *, advance: bool = False
    ) -> None:
        """Load a block, solve its weights, write them, move the activations on, free it."""
        planned = self.plan.block(index)
        done = index in writer.done
        self.watch.begin_block()
        self.progress.block(index)
        if not done or advance:
            with self._step("load"):
                self.skeleton.load_block(index, device=self.device, dtype=self.dtype, check=not done)
        if done:
            if advance and stream is not None and self.plan.needs_dense:
                with self._step("advance"):
                    stream.advance_dense(index)
            self._take_over(writer, planned, needed=advance)
        else:
            records = self._solve_block(writer, index, planned, stream)
            writer.finish_block(index, records, self._block_figures())
        if advance and stream is not None:
            with self._step("advance"):
                stream.advance(index)
        self.skeleton.release_block(index)

    def _stages(self, index: int, planned: tuple[PlannedWeight, ...]) -> list[tuple[PlannedWeight, ...]]:
        """The weights that are solved on one set of statistics: all of the block, or stage by stage."""
        if self.plan.recipe.within_block == "parallel" or self.corpus is None:
            return [planned]
        by_name = {weight.name: weight for weight in planned}
        stages = [tuple(by_name[v.name] for v in s if v.name in by_name) for s in self.skeleton.stages(index)]
        return [stage for stage in stages if stage]

    def _solve_block(
        self, writer: Writer, index: int, planned: tuple[PlannedWeight, ...], stream: BlockStream | None
    ) -> dict[str, Any]:
        """Solve and write the weights of one block; their records by name."""
        reshaped = self._reshape(writer, index, planned, stream)
        stages = self._stages(index, planned)
        dense: dict[str, torch.Tensor] | None = None
        if self.plan.needs_dense and len(stages) > 1:
            # Later stages see a block that is compressed in part; the dense activations need it as it was.
            block = self.skeleton.block_module(index)
            dense = {name: parameter.detach().clone() for name, parameter in block.named_parameters()}
        records: dict[str, Any] = {}
        held: dict[str, tuple[PlannedWeight, Attempt]] = {}
        for stage in stages:
            statistics = self._observe(index, stage, stream, dense)
            return_free_memory()
            if stream is not None and self.plan.needs_dense and stage is stages[-1]:
                with self._step("advance"):
                    stream.advance_dense(index, dense)
                dense = None
            metrics = Metrics()
            for weight in stage:
                attempt = self._solve(weight, statistics, metrics)
                seen = statistics.pop(weight.name, None)
                if not any(other is seen for other in statistics.values()):
                    metrics.forget()
                if weight.methods.block_solvers and stream is not None:
                    held[weight.name] = (weight, attempt)
                    weight.view.put(self.skeleton.parameter_of(weight.view), attempt.solution.theta)
                else:
                    records[weight.name] = self._write(writer, weight, attempt)
                del attempt, seen
                return_free_memory()
        for together in _alike(held.values()):
            assert stream is not None
            for weight, attempt in self._solve_together(index, together, stream):
                records[weight.name] = self._write(writer, weight, attempt)
        for name, state in reshaped.items():
            records[name]["info"]["reshape"] = state
        return records

    def _reshape(
        self, writer: Writer, index: int, planned: tuple[PlannedWeight, ...], stream: BlockStream | None
    ) -> dict[str, str]:
        """Reshape the block and write the vectors that this may change; weight → what was done about it, in words."""
        if not self.plan.reshapes or not planned or stream is None:
            return {}
        with self._step("reshape"):
            structures = {weight.name: weight.methods.structure for weight in planned}
            vectors = self._rewritten(index)
            done = reshape_block(
                self.skeleton, stream, index, structures, self.plan.reshapes, frozenset(vectors)
            )
        read = self.skeleton.source.read
        writer.put({disk: done.disk_values(name, read(disk)) for name, disk in vectors.items()})
        return done.states

    def _rewritten(self, index: int | None) -> dict[str, str]:
        if index is None:
            return {}
        prefix = self.skeleton.blocks[index] + "."
        return {name: disk for name, disk in self.plan.rewritten.items() if name.startswith(prefix)}

    def _observe(
        self,
        index: int,
        stage: tuple[PlannedWeight, ...],
        stream: BlockStream | None,
        dense: Mapping[str, torch.Tensor] | None,
    ) -> dict[str, Any]:
        if stream is None:
            return {}
        with self._step("observe"):
            names = {weight.name for weight in stage}
            return stream.observe(index, input_needs(self.plan), only=names, dense_parameters=dense)

    def _solve(self, planned: PlannedWeight, statistics: Mapping[str, Any], metrics: Metrics) -> Attempt:
        parameter = self.skeleton.parameter_of(planned.view)
        seen = self.survey.complete(planned, statistics.get(planned.name, NOTHING_SEEN), self.device)
        with self._step("solve"):
            metric = metrics.of(planned.methods, seen)
            return solve_weight(
                planned.methods, planned.view.get(parameter.detach()), seen, metric, self.seed
            )

    def _solve_together(
        self, index: int, held: list[tuple[PlannedWeight, Attempt]], stream: BlockStream
    ) -> list[tuple[PlannedWeight, Attempt]]:
        """What the block solvers of these weights, which are the same for all of them, make of them."""
        views = {weight.name: weight.view for weight, _ in held}
        run = BlockRun(self.skeleton, stream, index, views)
        problem = BlockProblem(
            {weight.name: attempt.problem for weight, attempt in held}, stream.batches, run
        )
        solutions = {weight.name: attempt.solution for weight, attempt in held}
        with self._step("solve"):
            for solver in held[0][0].methods.block_solvers:
                solutions = solver.solve(problem, solutions)
        return [(weight, attempt.moved_to(solutions[weight.name])) for weight, attempt in held]

    def _write(self, writer: Writer, planned: PlannedWeight, attempt: Attempt) -> dict[str, Any]:
        """Write a solved weight and put what a loader will find in its place; its record."""
        parameter = self.skeleton.parameter_of(planned.view)
        solved = attempt.pack()
        with self._step("write"):
            stored = self.plan.exporter.save(planned, solved.packed, writer, self.plan.facts)
            planned.view.put(parameter, stored.dense(parameter.dtype))
        if solved.record["fallback"]:
            self.progress.note(f"{planned.name}: {solved.record['fallback']}")
        self.progress.weight(planned.name, self._dense_bytes(planned))
        return solved.record

    def _take_over(self, writer: Writer, planned: tuple[PlannedWeight, ...], *, needed: bool) -> None:
        """A block that an earlier run finished: its weights come from the output."""
        for name, disk in self._rewritten(planned[0].view.block).items() if needed and planned else ():
            self.skeleton.model.get_parameter(name).copy_(writer.read(disk))
        for weight in planned:
            if needed:
                parameter = self.skeleton.parameter_of(weight.view)
                stored = self.plan.exporter.load(weight, writer, self.plan.facts)
                weight.view.put(parameter, stored.dense(parameter.dtype))
            self.progress.weight(weight.name, self._dense_bytes(weight))

    def _rest(self, writer: Writer) -> None:
        """Weights outside the blocks, solved without data."""
        planned = self.plan.block(None)
        if not planned or REST in writer.done:
            return
        with self._step("load"):
            self.skeleton.load_rest(device=self.device, dtype=self.dtype, head=True, check=True)
        self.watch.begin_block()
        metrics = Metrics()
        records = {w.name: self._write(writer, w, self._solve(w, {}, metrics)) for w in planned}
        writer.finish_block(REST, records, self._block_figures())
        self.skeleton.release_rest()

    def _finish(self, writer: Writer) -> Result:
        with self._step("copy"):
            writer.pass_through(self.plan.passed_through)
        config = dict(self.skeleton.source.config)
        if self.plan.quantization_config is not None:
            config["quantization_config"] = dict(self.plan.quantization_config)
        facts = RunFacts(
            self.skeleton,
            self.plan,
            self.corpus,
            self.device,
            self.seed,
            self.watch,
            tuple(self.notes),
            self.survey.figures,
        )
        out, report = writer.finish(
            config,
            lambda written: assemble(facts, written),
            files=lambda report: _report_files(report, writer.out.name),
            verify=self._verify,
        )
        return Result(out, self.plan, report)

    def _verify(self, folder: Path) -> None:
        with self._step("verify"):
            verify(folder, self.skeleton.source, plan=self.plan, checks=[check_logits])

    def _batch_size(self, corpus: Corpus) -> int | None:
        """Windows in a batch, where block solvers say how many tokens they want in one; else the stream's own choice."""
        tokens = [solver.tokens for weight in self.plan.weights for solver in weight.methods.block_solvers]
        return max(1, min(tokens) // corpus.tokens.shape[1]) if tokens else None

    def _block_figures(self) -> dict[str, float]:
        return {**self.watch.block_seconds, "peak_bytes": self.watch.block_peak}

    def _dense_bytes(self, planned: PlannedWeight) -> int:
        return planned.numel * self.plan.facts.headers[planned.view.sources[0]].dtype.itemsize

    def _step(self, name: str) -> Any:
        self.progress.step(name)
        return self.watch.step(name)
