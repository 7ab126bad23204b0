"""The stage: a compressed checkpoint is read, trained against its source, and written anew in the same layout and bytes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from compress.checkpoint.output import check_output
from compress.checkpoint.source import Source
from compress.checkpoint.writer import REPORT, Writer
from compress.errors import UserError
from compress.formats import OwnFile, with_quantization
from compress.formats.dense_source import open_any, open_dense
from compress.healing import dress
from compress.healing.data import check_healing_text, healing_text
from compress.healing.job import CACHE, SHELF, STATE, Job, training_of
from compress.healing.modules import keep_block_inputs_alone
from compress.healing.outcome import healed_report
from compress.healing.rules import check_rules, open_teachers
from compress.healing.student import Student, open_student
from compress.models.skeleton import open_skeleton
from compress.planning.healed import healed_parameters, numbers_of
from compress.planning.methods import build
from compress.planning.plan import Plan
from compress.recipe.recipe import heal_of
from compress.recipe.section import Method
from compress.report.files import report_files
from compress.report.schema import Report
from compress.runtime.load import load
from compress.structures.base import CompressedWeight
from compress.system.device import resolve_device, resolve_dtype
from compress.system.monitor import keep_little_free_memory, return_free_memory
from compress.system.progress import Progress, Silent
from compress.verification.checkpoint import plan_recorded, verify
from compress.verification.outputs import check_logits

DEFAULT = ("norms", "scales", "values", "factors")
"""What is trained where nothing is named, as far as the checkpoint has it."""
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
    folder = Path(out)
    target = folder if new is None else Path(new)
    if new is not None:
        check_output(target.resolve(), folder.resolve(), overwrite)
    job = _prepared(
        folder,
        source if isinstance(source, Source) else open_dense(source, trust_remote_code=trust_remote_code),
        _section(data, train, settings),
        seed=seed,
        device=resolve_device(device),
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        progress=progress or Silent(),
    )
    return _carry_out(job, target, overwrite=new is None or overwrite, restart=restart)


def _section(data: str | None, train: Any, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """The recipe's ``heal`` as plain data; ``train`` is empty where it is to be found out."""
    given = {**(settings or {}), **({} if data is None else {"data": data})}
    return {**given, "train": train or given.get("train") or []}


def _prepared(
    folder: Path,
    source: Source,
    section: Mapping[str, Any],
    *,
    seed: int,
    device: torch.device,
    dtype: str,
    trust_remote_code: bool,
    progress: Progress,
) -> Job:
    """Everything that can be refused, before anything is written."""
    if not 0 <= seed < 1 << 63:
        raise UserError(f"The seed {str(seed)[:30]} is no number from 0 to 2^63 - 1.")
    wanted = heal_of({**_public(section), "train": section["train"] or [*DEFAULT]})
    if source.path.resolve() == folder.resolve():
        raise UserError(
            f"{folder} is the compressed checkpoint itself: name the dense one that it was made from as the source"
        )
    pruned, before = plan_recorded(folder, source)
    if isinstance(before.exporter, OwnFile):
        raise UserError(
            f"{folder} is a {before.exporter.name} file, which heal does not write: heal the checkpoint that it was made from, "
            f"then `compress export --format {before.exporter.name}`"
        )
    known = before.recipe.calibrate
    check_healing_text(open_skeleton(pruned), wanted, section.get("data") or known.data, known.bos)
    verify(folder, source, plan=None)
    if not section["train"]:
        section = {**section, "train": _trainable(pruned, before, folder)}
    earlier = before.recipe.heal
    if earlier is not None:
        trained = [*earlier.train, *earlier.earlier]
        section = {**section, "earlier": [one.model_dump() for one in trained]}
    _, plan = plan_recorded(folder, source, changes={"heal": _public(section)})
    if plan.shards != before.shards:
        raise UserError(f"{folder}: healing would change its layout: run the recipe again with this version")
    skeleton = open_skeleton(pruned)
    recipe = plan.recipe
    assert recipe.heal is not None
    asked = recipe.heal.model_copy(update={"data": section.get("data")})
    text = healing_text(skeleton, recipe.model_copy(update={"heal": asked}), seed, device)
    teachers = open_teachers(section.get("teachers", ()), skeleton, trust_remote_code=trust_remote_code)
    resolved = resolve_dtype(dtype, skeleton.dtype, device.type)
    if resolved == torch.float16:
        raise UserError(
            "heal computes in bf16 or fp32, as gradients vanish in fp16: give --dtype bf16 or fp32"
        )
    compressed = open_any(folder, trust_remote_code=trust_remote_code)
    check_rules(recipe.heal)
    return Job(
        folder, compressed, pruned, plan, recipe.heal, teachers, text, device, resolved, seed, progress
    )


def _public(section: Mapping[str, Any]) -> dict[str, Any]:
    """As the report will hold it: a text file and teachers appear by their names alone."""
    data, teachers = section.get("data"), section.get("teachers", ())
    names = [teachers] if isinstance(teachers, str) else teachers
    return {
        **section,
        **({"teachers": [Path(name).name for name in names]} if teachers else {}),
        **({"data": Path(data).name} if isinstance(data, str) and Path(data).is_file() else {}),
    }


def _trainable(source: Source, plan: Plan, folder: Path) -> list[str]:
    """All simple trainables that a checkpoint has."""
    skeleton = open_skeleton(source)
    found = []
    for name in DEFAULT:
        entry = build("trainable", Method(name=name))
        if numbers_of(skeleton, plan.recipe, plan.weights, entry):
            found.append(name)
    if not found:
        raise UserError(f"{folder} has nothing that heal could train")
    return found


def _carry_out(job: Job, target: Path, *, overwrite: bool, restart: bool) -> Healed:
    settings = {"heal": job.heal.model_dump(mode="json"), "seed": job.seed, "device": job.device.type}
    with Writer(
        target,
        job.plan.shards,
        source=_Bytes(job.compressed, job.source),
        fingerprint=job.key,
        settings=settings,
        overwrite=overwrite,
        restart=restart,
    ) as writer:
        for note in (*writer.notes, *job.text.notes):
            job.progress.note(note)
        if not writer.done:
            writer.finish_block("begun", {})
        return _train(job, writer)


def _train(job: Job, writer: Writer) -> Healed:
    plan, heal = job.plan, job.heal
    sparing = heal.checkpointing or hasattr(build("optimizer", heal.optimizer), "step_forward")
    keep_little_free_memory(SMALL_PIECE if sparing else None)
    entries = [build("trainable", method) for method in heal.train]
    trust = job.source.trust_remote_code
    began = time.monotonic()
    skeleton = open_skeleton(job.source)
    parameters = healed_parameters(skeleton, plan.recipe, plan.weights, entries=entries)
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
    state_file = writer.partial / STATE
    training = training_of(job, student, teacher, parameters, writer.partial)
    return_free_memory()
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
    make = partial(healed_report, before, plan, skeleton, *figures, seconds=seconds)
    config = with_quantization(job.source.config, plan.exporter, plan.quantization_config)
    state_file.unlink()
    for file in (dress.STATE, SHELF):
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
    written = writer.done["healed"].tensors
    slots = (slot.name for shard in job.plan.shards for slot in shard.slots)
    writer.pass_through(name for name in slots if name not in written)


def _verify(job: Job, folder: Path) -> None:
    verify(folder, job.source, plan=job.plan, checks=[check_logits])
