"""The stage: a compressed checkpoint is read, trained against its source, and written anew in the same layout and bytes."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from compress.checkpoint.output import check_output
from compress.checkpoint.source import Source
from compress.checkpoint.unfinished import BEGUN
from compress.checkpoint.writer import REPORT, Writer
from compress.errors import UserError
from compress.formats import with_quantization
from compress.formats.dense_source import open_dense
from compress.healing import dress
from compress.healing.job import CACHE, SHELF, STATE, Job, training_of
from compress.healing.loop import Training
from compress.healing.modules import keep_block_inputs_alone
from compress.healing.outcome import healed_report
from compress.healing.preparing import prepared, section_of
from compress.healing.rules import rules_of
from compress.healing.shares import Shares, check_same, check_shares
from compress.healing.state import what_is_kept
from compress.healing.student import Student, open_student
from compress.models.skeleton import open_skeleton
from compress.planning.healed import healed_parameters
from compress.planning.methods import build
from compress.planning.plan import Plan
from compress.report.files import report_files
from compress.report.schema import Report
from compress.runtime.load import load
from compress.structures.base import CompressedWeight
from compress.system.device import device_of_rank, resolve_device
from compress.system.monitor import keep_little_free_memory, return_free_memory
from compress.system.progress import Progress, Silent
from compress.system.ranks import Ranks
from compress.system.scratch import scratch_folder
from compress.verification.checkpoint import verify
from compress.verification.outputs import check_logits

SMALL_PIECE = 256 << 10
"""Pieces of freed memory that are given back at once where memory is to be saved: activations of small models are no larger,
and kept for every size of layer they were half of the peak."""


@dataclass(frozen=True)
class Healed:
    """What healing wrote: the folder, its plan and its report."""

    out: Path
    plan: Plan
    report: Report

    def to_json(self) -> dict[str, Any]:
        """Plain data, for scripts."""
        return {"out": str(self.out), "report": self.report.model_dump(mode="json")}


@dataclass(frozen=True)
class _Bytes:
    """What the writer copies from: tensors of the compressed checkpoint, the files beside them from its source."""

    compressed: Source
    source: Source

    @property
    def path(self) -> Path:
        return self.source.path

    def raw_bytes(self, name: str) -> memoryview:
        return self.compressed.raw_bytes(name)

    def extra_files(self) -> list[Path]:
        return self.source.extra_files()


def heal(
    out: str | Path,
    *,
    source: str | Path | Source,
    data: str | None = None,
    train: Any = None,
    settings: Mapping[str, Any] | None = None,
    new: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    overwrite: bool = False,
    restart: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Healed:
    """Train what a compressed checkpoint may change without a change of its layout, against the dense model.

    Args:
        out: a folder that :func:`compress.compress` wrote.
        source: the dense checkpoint that it was made from.
        data: the text; the checkpoint's calibration text if ``None``.
        train: trainables, as in a recipe; all that the checkpoint has if ``None``.
        settings: other keys of :class:`compress.recipe.heal.Heal`.
        new: the folder to write; ``out`` itself, once the new one is verified, if ``None``.
        seed: decides which windows are drawn.
        device: ``"auto"`` is the first GPU if there is one.
        dtype: what the models compute in: ``"auto"`` (the source's own), ``"bf16"`` or ``"fp32"``; what is trained is fp32.
        overwrite: whether ``new`` may exist.
        restart: whether an unfinished healing of other settings may be discarded.
        trust_remote_code: run Python code that comes with the checkpoint.
        progress: who is told.

    Raises:
        UserError: ``out`` is not what ``source`` was compressed to, there is nothing to train, or it cannot be written.
    """
    healed = _heal(
        Path(out),
        Shares(),
        source=source,
        data=data,
        train=train,
        settings=settings,
        new=new,
        seed=seed,
        device=device,
        dtype=dtype,
        overwrite=overwrite,
        restart=restart,
        trust_remote_code=trust_remote_code,
        progress=progress,
    )
    assert healed is not None
    return healed


def heal_together(out: str | Path, ranks: Ranks, arguments: Mapping[str, Any]) -> Healed | None:
    """:func:`heal` by several processes, each on windows of its own; all of them call it alike.

    Args:
        out: as for :func:`heal`.
        ranks: this process among the others.
        arguments: the others of :func:`heal`, by name; all of them.

    Returns:
        None on all ranks but the first, which writes.

    Raises:
        UserError: as :func:`heal`; there are more ranks than windows in a step, or one has ended.
    """
    return _heal(Path(out), Shares(ranks), **arguments)


def _heal(
    folder: Path,
    shares: Shares,
    *,
    source: str | Path | Source,
    data: str | None,
    train: Any,
    settings: Mapping[str, Any] | None,
    new: str | Path | None,
    seed: int,
    device: str,
    dtype: str,
    overwrite: bool,
    restart: bool,
    trust_remote_code: bool,
    progress: Progress | None,
) -> Healed | None:
    target = folder if new is None else Path(new)
    if new is not None and shares.leads:
        check_output(target.resolve(), folder.resolve(), overwrite)
    job = prepared(
        folder,
        source if isinstance(source, Source) else open_dense(source, trust_remote_code=trust_remote_code),
        section_of(data, train, settings),
        seed=seed,
        device=resolve_device(device) if shares.ranks is None else device_of_rank(device, shares.ranks.here),
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        progress=(progress if shares.leads else None) or Silent(),
    )
    if ranks := shares.ranks:
        check_same(job.key, ranks)
        windows = job.text.windows[job.heal.dressing * job.heal.batch :]
        check_shares(job.heal, rules_of(job.heal, windows).sizes, job.text.held_out, ranks)
    if shares.leads:
        return _carry_out(job, target, shares, overwrite=new is None or overwrite, restart=restart)
    with scratch_folder(Path(tempfile.gettempdir()), ".compress-heal-") as own:
        _opened(job, own, shares)[2].run()
    return None


def _carry_out(job: Job, target: Path, shares: Shares, *, overwrite: bool, restart: bool) -> Healed:
    settings = {"heal": job.heal.model_dump(mode="json"), "seed": job.seed, "device": job.device.type}
    with Writer(
        target,
        job.plan.shards,
        source=_Bytes(job.compressed, job.source),
        fingerprint=job.key,
        settings=settings,
        overwrite=overwrite,
        restart=restart,
        kept=lambda folder: what_is_kept(folder / STATE),
    ) as writer:
        for note in (*writer.notes, *job.text.notes):
            job.progress.note(note)
        fresh = not writer.done
        if fresh:
            writer.finish_block(BEGUN, {})
            writer.settle()
        try:
            return _train(job, writer, shares)
        except UserError:
            if fresh and not any((writer.partial / name).exists() for name in (STATE, dress.STATE, CACHE)):
                writer.done.clear()  # there is nothing that the same command could go on from
            raise


def _opened(job: Job, folder: Path, shares: Shares) -> tuple[Student, dict[str, str], Training]:
    """The student, the dense parameters that are trained with their tensors on disk, and the training.

    Args:
        job: all that is known.
        folder: of states and answers.
        shares: the processes that train together.
    """
    plan, heal = job.plan, job.heal
    sparing = heal.checkpointing or hasattr(build("optimizer", heal.optimizer), "step_forward")
    keep_little_free_memory(SMALL_PIECE if sparing else None)
    entries = [build("trainable", method) for method in heal.train]
    trust = job.source.trust_remote_code
    parameters = healed_parameters(open_skeleton(job.source), plan.recipe, plan.weights, entries=entries)
    teacher = load(job.source.path, dtype=job.dtype, device=job.device, trust_remote_code=trust)
    student = open_student(
        job.folder,
        plan,
        entries,
        parameters,
        teacher=teacher,
        device=job.device,
        dtype=job.dtype,
        trust_remote_code=trust,
    )
    if heal.checkpointing:
        keep_block_inputs_alone(student.model)
    training = training_of(job, student, teacher, parameters, folder, shares)
    return_free_memory()
    return student, parameters, training


def _train(job: Job, writer: Writer, shares: Shares) -> Healed:
    plan = job.plan
    began = time.monotonic()
    student, parameters, training = _opened(job, writer.partial, shares)
    job.progress.start(0, 0, 0)
    try:
        state = training.run()
    finally:
        job.progress.finish()
        keep_little_free_memory()
    seconds = time.monotonic() - began
    _write(job, student, parameters, writer)
    before = Report.read(job.folder / REPORT)
    figures = (student, state, job.text, training.rules)
    make = partial(healed_report, before, plan, open_skeleton(job.source), *figures, seconds=seconds)
    config = with_quantization(job.source.config, plan.exporter, plan.quantization_config)
    for file in (STATE, dress.STATE, SHELF):
        (writer.partial / file).unlink(missing_ok=True)
    shutil.rmtree(writer.partial / CACHE, ignore_errors=True)
    out, report = writer.finish(
        config,
        make,
        files=lambda report: report_files(report, job.source, writer.out.name) | plan.form_files,
        verify=partial(_verify, job),
    )
    return Healed(out, plan, report)


def _write(job: Job, student: Student, parameters: Mapping[str, str], writer: Writer) -> None:
    """The healed tensors, then everything else as it was."""
    for planned in job.plan.weights:
        weight = student.weights.get(planned.name)
        if weight is not None:
            tensors = {suffix: tensor.cpu() for suffix, tensor in weight.tensors().items()}
            packed = CompressedWeight(weight.layout, weight.shape, tensors)
            job.plan.exporter.save(planned, packed, writer, job.plan.facts)
    writer.put({disk: student.stored(name).cpu() for name, disk in parameters.items()})
    writer.finish_block("healed", {})
    writer.settle()
    written = writer.done["healed"].tensors
    slots = (slot.name for shard in job.plan.shards for slot in shard.slots)
    writer.pass_through(name for name in slots if name not in written)


def _verify(job: Job, folder: Path) -> None:
    verify(folder, job.source, plan=job.plan, checks=[check_logits])
