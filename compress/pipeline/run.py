"""One run: weights that need no data, then block by block, then the output head, then the finished and verified folder."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from compress_kernels import native

from compress.calibrate.corpus import Corpus
from compress.calibrate.head_inputs import observe_head
from compress.calibrate.image_corpus import image_bytes
from compress.calibrate.simulate import InputRounding
from compress.calibrate.stream import BlockStream
from compress.calibrate.walk import loaded_blocks, walk_blocks
from compress.calibrate.whole_model import WholeModelStream
from compress.checkpoint.read_ahead import AHEAD, ReadAhead
from compress.checkpoint.writer import Writer
from compress.formats import OwnFile, with_quantization
from compress.linalg.factor_cache import FactorCache
from compress.pipeline.activations import restore_cache, restore_inputs
from compress.pipeline.block import BlockJob
from compress.pipeline.block_shares import training_batches
from compress.pipeline.job import Job
from compress.pipeline.kept_bound import broken_bounds
from compress.pipeline.outliers import outlier_notes
from compress.planning.plan import Plan, PlannedWeight
from compress.prune.notes import shape_notes
from compress.report.assemble import RunFacts, assemble, versions
from compress.report.files import report_files
from compress.report.schema import Report
from compress.report.source_notes import source_notes
from compress.system.monitor import WAIT
from compress.verification.checkpoint import Check, verify
from compress.verification.output_shares import check_with
from compress.verification.outputs import check_logits

REST = "rest"
"""The journal's name for the weights outside the blocks that are solved without data."""
HEAD = "head"
"""Its name for those that are solved on the inputs of the output head."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """The result of a run: its folder, plan and report."""

    out: Path
    plan: Plan
    report: Report

    def to_frame(self) -> Any:
        """A ``pandas.DataFrame``: a row for each compressed weight, by name."""
        return self.report.to_frame()

    def to_json(self) -> dict[str, Any]:
        """Plain data, for scripts."""
        return {"out": str(self.out), "report": self.report.model_dump(mode="json")}


@dataclass
class Run:
    """A run over all blocks of a model; ``corpus`` is None where no step has looked at data."""

    job: Job
    corpus: Corpus | None
    notes: list[str] = field(default_factory=list)
    files: Mapping[str, str] = field(default_factory=dict)
    """Text files by name that are written beside the report."""

    def identity(self) -> dict[str, Any]:
        """What decides the output's bytes besides the plan and the source."""
        tokens = b"" if self.corpus is None else self.corpus.tokens.numpy().tobytes()
        if self.corpus is not None and self.corpus.images is not None:
            tokens += image_bytes(self.corpus.images)
        return {
            "tokens": hashlib.sha256(tokens).hexdigest(),
            "dtype": str(self.job.dtype),
            "device": self.job.device.type,
            "seed": self.job.seed,
            "versions": versions(),
            "kernels": self._kernels(),
            # Sums over batches of another size round otherwise.
            **({} if (windows := self.job.plan.economy.windows) is None else {"windows": windows}),
        }

    def _kernels(self) -> str:
        """Which CPU kernels sum the statistics: another set of instructions adds in another order. Built here, if need be."""
        reads = self.corpus is not None and self.job.device.type == "cpu"
        if not reads:
            return ""
        kernels = native.load()
        _LOG.info(
            "statistics are summed by %s", kernels.note if kernels.loaded else f"plain torch: {kernels.note}"
        )
        return kernels.isa

    def carry_out(self, writer: Writer) -> Result:
        """All steps from the first block to the finished folder."""
        weights = self.job.plan.weights
        blocks = len(self.job.skeleton.blocks)
        self.job.progress.start(blocks, len(weights), sum(self.job.dense_bytes(weight) for weight in weights))
        try:
            # What an earlier run left is for the screen alone: the report of a continued run is that of an unbroken one.
            for note in writer.notes:
                self.job.progress.note(note)
            for entry in writer.done.values():
                self.job.monitor.restore(entry.seconds)
            if self.corpus is not None and self.corpus.note:
                self._note(self.corpus.note)
            self.notes.extend(source_notes(self.job.skeleton.source))
            self.notes.extend(shape_notes(self.job.skeleton))
            if self.job.plan.promised is not None:
                self._note(f"memory: {self.job.plan.promised.note}")
            if note := self.job.plan.kv_note:
                self.notes.append(note)
            coverage = self.job.plan.coverage_note
            for note in (*self.job.plan.notes, *([coverage] if coverage else [])):
                self._note(note)
            with ReadAhead(lambda: self.job.monitor.wall) as ahead:
                self._read_on(writer, ahead, 0)
                self._check_rest()
                self._rest(writer)
                self._blocks(writer, ahead)
            return self._finish(writer)
        finally:
            self.job.progress.finish()

    def _note(self, note: str) -> None:
        """Tell people something, in the report and on the screen."""
        self.notes.append(note)
        self.job.progress.note(note)

    def _blocks(self, writer: Writer, ahead: ReadAhead) -> None:
        job, indices = self.job, range(len(self.job.skeleton.blocks))
        load = partial(self._load, writer, ahead)
        corpus = self._streamed
        if corpus is None:
            with loaded_blocks(
                job.skeleton, indices, device=job.device, dtype=job.dtype, load=load
            ) as blocks:
                for index in blocks:
                    self._block(writer, index, None)
            return
        with walk_blocks(
            job.skeleton,
            corpus.tokens,
            device=job.device,
            dtype=job.dtype,
            batch_size=self._batch_size(corpus),
            memory_limit=job.plan.economy.in_memory,
            device_limit=job.plan.economy.on_device,
            through_last=self._head_waits(writer),
            spill_dir=writer.partial.parent,
            dense=job.plan.needs_dense,
            images=corpus.images,
            load=load,
            step=job.step,
            ranks=job.ranks,
        ) as walk:
            if job.plan.needs_dense and isinstance(walk.stream, WholeModelStream):
                self._note(
                    "This model cannot be run block by block and was run as a whole: true_input_target had no effect, every "
                    "weight was solved for the inputs that it gets in the compressed model."
                )
            if self._head_waits(writer):
                self._check_head(walk.stream)
            for index in walk:
                self._block(writer, index, walk.stream)
            if self._head_waits(writer):
                self._solve_head(writer, walk.stream)

    def _load(self, writer: Writer, ahead: ReadAhead, index: int) -> None:
        """Load a block that is to be solved, or whose outputs the next block is given, and read on in the background."""
        job = self.job
        job.monitor.begin_block()
        job.progress.block(index)
        if not self._is_loaded(writer, index):
            return
        with job.step(WAIT):
            read = ahead.wait()
        job.monitor.span(AHEAD, *read)
        self._read_on(writer, ahead, index + 1)
        with job.step("load"):
            check = index not in writer.done
            job.skeleton.load_block(index, device=job.device, dtype=job.dtype, check=check, mapped=True)

    def _read_on(self, writer: Writer, ahead: ReadAhead, first: int) -> None:
        """Read the next block that will be loaded, ``first`` or one behind it, in the background."""
        left = range(first, len(self.job.skeleton.blocks))
        for index in [index for index in left if self._is_loaded(writer, index)][:1]:
            ahead.begin(self.job.skeleton.block_on_disk(index))

    def _is_loaded(self, writer: Writer, index: int) -> bool:
        return index not in writer.done or self._is_followed(writer, index)

    def _block(self, writer: Writer, index: int, stream: BlockStream | None) -> None:
        """Solve the weights of a block and write them, or take over what an earlier run has written."""
        if index in writer.done:
            if stream is not None and self._is_followed(writer, index) and self.job.plan.needs_dense:
                with self.job.step("advance"):
                    stream.advance_dense(index)
            self._take_over(writer, index, stream)
            return
        records = BlockJob(self.job, writer, index, stream).carry_out()
        self._finish_block(writer, index, records)

    def _finish_block(self, writer: Writer, block: int | str, records: Mapping[str, Any]) -> None:
        """Have a block put on disk in the background, once the one before is there."""
        with self.job.step(WAIT):
            writer.settle()
        writer.finish_block(block, records, self.job.monitor.block_record())

    @property
    def _streamed(self) -> Corpus | None:
        """The calibration windows that the blocks are run on; None where no weight is solved by data."""
        return self.corpus if self.job.plan.needs_data else None

    def _is_followed(self, writer: Writer, index: int) -> bool:
        """Whether the outputs of a block are needed, as inputs of the next one or on the way to the head."""
        last = index + 1 == len(self.job.skeleton.blocks)
        return self._streamed is not None and (not last or self._head_waits(writer))

    def _take_over(self, writer: Writer, index: int, stream: BlockStream | None) -> None:
        """Put the weights that an earlier run has written into the block, where its outputs are needed."""
        needed = self._is_followed(writer, index)
        planned = self.job.plan.block(index)
        if needed and stream is not None:
            restore_inputs(self.job, writer, stream, index, planned)
            restore_cache(self.job, writer, stream, index)
        for name, disk in self.job.rewritten(index).items() if needed and planned else ():
            self.job.skeleton.model.get_parameter(name).copy_(writer.read(disk))
        for weight in planned:
            if needed:
                self.job.put_written(writer, weight)
            self.job.progress.weight(weight.name, self.job.dense_bytes(weight))

    def _check_rest(self) -> None:
        """Refuse NaN and infinity in what is outside of the blocks (embeddings, the final norm) before any work."""
        job = self.job
        with job.step("load"):
            job.skeleton.load_rest(device="cpu", dtype=job.skeleton.dtype, head=True, check=True)
            job.skeleton.release_rest()

    def _rest(self, writer: Writer) -> None:
        """Weights outside the blocks that are solved without data."""
        planned = [weight for weight in self.job.plan.block(None) if not weight.needs]
        if not planned or REST in writer.done:
            return
        job = self.job
        with ExitStack() as stack:
            rest = job.skeleton.loaded_rest(device=job.device, dtype=job.dtype, head=True, check=True)
            with job.step("load"):
                stack.enter_context(rest)
            job.monitor.begin_block()
            factors = FactorCache()
            records = {w.name: job.write(writer, w, job.solve(w, {}, factors).pack()) for w in planned}
            self._finish_block(writer, REST, records)

    @property
    def _of_head(self) -> list[PlannedWeight]:
        """The weights that are solved on the inputs of the output head, one or the parts of one."""
        return [weight for weight in self.job.plan.block(None) if weight.needs]

    def _head_waits(self, writer: Writer) -> bool:
        return bool(self._of_head) and HEAD not in writer.done

    def _check_head(self, stream: BlockStream) -> None:
        """Refuse, before any block is solved, a model whose code cannot be run from its last block to its head."""
        job = self.job
        with job.step("embed"), job.skeleton.loaded_rest(device=job.device, dtype=job.dtype):
            next(stream.head_inputs())

    def _solve_head(self, writer: Writer, stream: BlockStream) -> None:
        """Solve what the output head multiplies by, on what the compressed blocks send it."""
        job, planned = self.job, self._of_head
        job.monitor.begin_block()
        with ExitStack() as stack:
            rest = job.skeleton.loaded_rest(device=job.device, dtype=job.dtype, head=True)
            with job.step("load"):
                stack.enter_context(rest)
            with job.step("observe"):
                needs = frozenset[str]().union(*(weight.needs for weight in planned))
                scheme = planned[0].activations
                rounding = None if scheme is None else InputRounding(scheme)
                seen = observe_head(stream.head_inputs(), needs, rounding=rounding)
            statistics, factors = {weight.name: seen for weight in planned}, FactorCache()
            records = {
                w.name: job.write(writer, w, job.solve(w, statistics, factors).pack()) for w in planned
            }
            self._finish_block(writer, HEAD, records)

    def _finish(self, writer: Writer) -> Result:
        with self.job.step("copy"):
            writer.pass_through(self.job.plan.passed_through)
            self._convert(writer)
        with self.job.step(WAIT):
            writer.settle()
        for note in outlier_notes(item for entry in writer.done.values() for item in entry.records.items()):
            self._note(note)
        for note in broken_bounds(self.job.plan, self.job.monitor):
            self._note(note)
        plan = self.job.plan
        config = with_quantization(self.job.skeleton.source.config, plan.exporter, plan.quantization_config)
        facts = RunFacts(
            self.job.skeleton,
            self.job.plan,
            self.corpus,
            self.job.device,
            self.job.seed,
            self.job.monitor,
            tuple(self.notes),
            self.job.sensitivity.figures,
        )
        out, report = writer.finish(
            config,
            lambda written: assemble(facts, written),
            files=lambda report: {
                **report_files(report, self.job.skeleton.source, writer.out.name),
                **plan.form_files,
                **self.files,
            },
            verify=self._verify,
        )
        return Result(out, self.job.plan, report)

    def _convert(self, writer: Writer) -> None:
        """Write the tensors that no weight is compressed in, where the form keeps none as it is in the source."""
        exporter, facts = self.job.plan.exporter, self.job.plan.facts
        if isinstance(exporter, OwnFile):
            source = self.job.skeleton.source
            writer.convert((name, exporter.convert(name, source, facts)) for name in self.job.plan.converted)

    def _verify(self, folder: Path) -> None:
        with self.job.step("verify"):
            checks: list[Check] = [check_logits]
            if self.job.ranks is not None:
                checks = [partial(check_with, self.job.ranks)]
            verify(folder, self.job.skeleton.source, plan=self.job.plan, checks=checks)

    def _batch_size(self, corpus: Corpus) -> int | None:
        """Windows in a batch, where block solvers say how many tokens they want in one; else the stream's own choice."""
        windows = corpus.tokens.shape[0], corpus.tokens.shape[1]
        return training_batches(self.job.plan, windows, self.job.ranks)[0]
