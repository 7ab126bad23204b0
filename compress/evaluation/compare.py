"""Perplexity, KL divergence, agreement, bytes and speed of several checkpoints against a dense one."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compress.assets import EMBEDDED, embedded_text
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.evaluation import coverage
from compress.evaluation.coverage import coverage_notes
from compress.evaluation.embeddings import pooling_of
from compress.evaluation.figures import CheckpointFigures, Evaluation
from compress.evaluation.further import Dense, Further, FurtherText, measure_beside, measure_dense
from compress.evaluation.holdout import text_hash
from compress.evaluation.measure import Measurement, Opened, Progress, measure, outputs
from compress.evaluation.needle import LONGEST, make_needle
from compress.evaluation.provenance import Provenance, read_provenance, spreads_of, thin_notes
from compress.evaluation.recall import recall_task
from compress.evaluation.subjects import (
    Opener,
    Subject,
    common_tokenizer,
    open_subjects,
    parameter_count,
    probe_text,
)
from compress.evaluation.tasks import check_tasks
from compress.evaluation.texts import Texts
from compress.evaluation.windows import Cut, check_long_enough, read_documents, text_files
from compress.models.architecture import predicts_next_token
from compress.system.device import resolve_device
from compress.text.check import check_text_file
from compress.text.limits import fit_length, reserved_positions
from compress.text.tokenize import resolve_bos

_LOG = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KEEP_BYTES = 2 << 30
"""The reference's logits are kept in memory up to so many bytes; above, both models run side by side."""
PROMPT_TOKENS = 32
"""Tokens of a window's beginning that are continued."""
BATCH_BYTES = 256 << 20
"""An unset batch size is chosen so that the logits of a batch stay under this."""


class Loader(Protocol):
    """What `compress.load` is: a folder or hub name → a model in evaluation mode."""

    def __call__(
        self, path: str | Path, *, dtype: torch.dtype, device: torch.device, trust_remote_code: bool = False
    ) -> PreTrainedModel:
        """The model of a checkpoint, in evaluation mode."""
        ...


def evaluate(
    reference: str | Path,
    candidates: Sequence[str | Path],
    *,
    text: str | Path | Sequence[str | Path],
    load: Loader,
    open_checkpoint: Opener = open_source,
    length: int = 2048,
    limit: int | None = None,
    bos: bool | None = None,
    dtype: str = "bf16",
    device: str | torch.device = "auto",
    batch_size: int | None = None,
    speed: bool = True,
    tasks: Sequence[str] = (),
    include_path: str | Path | None = None,
    task_limit: int | None = None,
    foreign: bool = False,
    calibration: str | Path | None = None,
    prompts: int = 0,
    needle: bool = False,
    trust_remote_code: bool = False,
    keep_bytes: int = KEEP_BYTES,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure checkpoints side by side on consecutive windows of one text, and of further ones.

    Args:
        reference: the dense model: a folder, a hub name, or "embedded" for the one that ships with the package.
        candidates: folders or hub names of compressed ones; may be empty.
        text: a UTF-8 text file, a `.jsonl` or `.json` file of documents, "embedded" for the shipped held-out text or "prose"
            for shipped English prose; of several the first is the one that all rows are measured on.
        load: turns a path into a model.
        open_checkpoint: turns a path into a source.
        length: context length in tokens; shortened, with a note, to the longest that all models take.
        limit: number of windows; None takes the whole text.
        bos: begin each window with the BOS token; None does as the tokenizer does by itself.
        dtype: "fp32", "bf16" or "fp16": what the models compute in; all figures are computed in fp32.
        batch_size: windows at once; None chooses by the size of the logits.
        speed: measure prefill and decoding too.
        tasks, include_path, task_limit: lm-evaluation-harness tasks, see `run_tasks`.
        foreign: measure a language model on some windows of the shipped prose too, unless it is among the texts.
        calibration: the text that the candidates were calibrated on, to tell by measured coverage which texts are of its
            domain; None takes the shipped one where a `compress.json` says so, and measures nothing otherwise.
        prompts: beginnings of windows that every model continues greedily, with a recall task beside them.
        needle: hide a number in a text as long as the model takes, up to 4096 tokens, and ask for it.
        keep_bytes: limit on the reference's logits kept in memory; above it the two models run in lockstep,
            which needs both in memory and runs the reference once more for every candidate.

    Raises UserError for a text that is missing, empty or shorter than one window, for an unknown dtype, and
    for candidates with another tokenizer or vocabulary than the reference.
    """
    if dtype not in DTYPES:
        raise UserError(f"Unknown dtype {dtype}: take one of {', '.join(DTYPES)}.")
    target = resolve_device(device)
    files = text_files(text)
    _LOG.info("reading %s", files[0])
    documents = [read_documents(file) for file in files]
    if calibration is not None:
        check_text_file(calibration)
    if tasks:
        _LOG.info("looking up tasks")
        check_tasks(tasks, include_path)
    # Whatever is wrong with a checkpoint's files is said before the first model is loaded.
    subjects = open_subjects([reference, *candidates], trust_remote_code, open_checkpoint)
    tokenizer = common_tokenizer(subjects, probe_text(documents[0]), trust_remote_code)
    known = [] if calibration is None else [read_documents(_calibration_file(calibration))]
    for one in (*documents, *known):
        check_long_enough(one, tokenizer, length, subjects[0].source.config)

    def opened(subject: Subject) -> Opened:
        _LOG.info("loading %s", subject.name)
        start = time.perf_counter()
        model = load(subject.path, dtype=DTYPES[dtype], device=target, trust_remote_code=trust_remote_code)
        return Opened(model.eval(), time.perf_counter() - start)

    dense = opened(subjects[0])
    pooling = _pooling(dense.model, subjects[0], more=bool(tasks or prompts or needle or len(files) > 1))
    with_bos = pooling is None and resolve_bos(bos, tokenizer)
    length, notes = _length(dense.model, length)
    cut = Cut(tokenizer, length, limit, with_bos, framing=pooling is not None)
    _LOG.info("tokenizing %s", files[0].name)
    texts = Texts.cut(files, documents, cut, dense.model)
    if foreign and pooling is None:
        texts = texts.with_prose(cut, dense.model)
    notes += texts.notes
    made = [read_provenance(subject.folder) for subject in subjects[1:]]
    notes += thin_notes([subject.name for subject in subjects[1:]], made)
    if pooling is None:
        notes += _coverage(dense.model, cut, calibration, made, texts)
    job = Measurement(
        windows=texts.windows[0],
        batch_size=batch_size or _batch_size(dense.model, length),
        parameters=parameter_count(subjects[0].weights, dense.model),
        tokenizer=tokenizer,
        speed=speed,
        tasks=tuple(tasks),
        include_path=include_path,
        task_limit=task_limit,
        progress=progress,
        pooling=pooling,
    )
    further = _further(job, dense.model, texts, prompts=prompts, needle=needle, bos=with_bos)
    every = sum(_logit_bytes(dense.model, found) for found in texts.windows)
    keep = len(subjects) > 1 and every <= keep_bytes
    holder = [dense]
    del dense
    rows = _rows(job, further, subjects, holder, opened, keep=keep)
    return Evaluation(
        reference=rows[0],
        candidates=tuple(rows[1:]),
        text=files[0].name,
        length=length,
        windows=len(job.windows),
        dtype=dtype,
        device=_device_name(target),
        threads=torch.get_num_threads(),
        bos=with_bos,
        notes=tuple(notes),
        pooling=pooling,
        text_sha256=text_hash(files[0]),
        seeds=spreads_of(rows[1:], made),
        prompts=further.prompt_texts,
    )


def _pooling(model: PreTrainedModel, subject: Subject, *, more: bool) -> str | None:
    """How an embedding model pools; None of a language model. ``more``: whether what only those do was asked for."""
    if predicts_next_token(model):
        return None
    if more:
        raise UserError(
            "Tasks, prompts, a needle and further texts need a language model, and a "
            f"{type(model).__name__} predicts no tokens."
        )
    return pooling_of(subject.folder)


def _length(model: PreTrainedModel, length: int) -> tuple[int, list[str]]:
    """The context length that the model takes, and a note where that is less than was asked for."""
    fitting, note = fit_length(model.config, length, reserved_positions(model))
    return fitting, [note] if note else []


def _coverage(
    model: PreTrainedModel,
    cut: Cut,
    calibration: str | Path | None,
    made: Sequence[Provenance | None],
    texts: Texts,
) -> list[str]:
    """Whether the texts are of the calibration's domain, in sentences."""
    names = list(
        dict.fromkeys(one.calibration for one in made if one is not None and one.calibration is not None)
    )
    if calibration is None and EMBEDDED in names:
        calibration = embedded_text("calibration")
    if calibration is None:
        return [
            f"Whether these texts are of the domain of {name} was not measured: name the calibration text (--calibration)."
            for name in names[:1]
        ]
    path = _calibration_file(calibration)
    _LOG.info("comparing the texts with %s", path.name)
    known = cut.windows(read_documents(path), coverage.WINDOWS)
    return coverage_notes(model, known, path.name, texts.named())


def _calibration_file(calibration: str | Path) -> Path:
    return Path(embedded_text("calibration") if str(calibration) == EMBEDDED else calibration)


def _further(
    job: Measurement,
    model: PreTrainedModel,
    texts: Texts,
    *,
    prompts: int,
    needle: bool,
    bos: bool,
) -> Further:
    """What is measured beside the first text."""
    tokenizer = job.tokenizer
    others = tuple(FurtherText(*one) for one in texts.named()[1:])
    further = Further(tokenizer, job.batch_size, others, progress=job.progress)
    if prompts:
        starts = job.windows[:prompts, :PROMPT_TOKENS]
        shown = tuple(str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in starts.tolist())
        task = recall_task(tokenizer, bos=bos)
        further = replace(further, prompts=starts, prompt_texts=shown, recall=task)
    if needle:
        longest, _ = fit_length(model.config, LONGEST, reserved_positions(model))
        hay = job.windows[:, int(bos) :].flatten().tolist()
        further = replace(further, needle=make_needle(tokenizer, hay, longest, bos=bos))
    return further


def _rows(
    job: Measurement,
    further: Further,
    subjects: Sequence[Subject],
    holder: list[Opened],
    opened: Callable[[Subject], Opened],
    *,
    keep: bool,
) -> list[CheckpointFigures]:
    """Measure the reference, which `holder` alone holds, then one candidate after the other."""
    kept: list[Tensor] = []
    dense = Dense(keep)
    first = measure(job, subjects[0], holder[0], keep_in=kept if keep else None)
    rows = [measure_dense(further, first, holder[0].model, dense)]
    if keep:
        # The logits say all that is needed of the reference: from here on only one model is in memory at a time.
        holder.clear()
    for subject in subjects[1:]:
        gc.collect()
        against = iter(kept) if keep else outputs(job, holder[0].model)
        loaded = opened(subject)
        row = measure(job, subject, loaded, against=against)
        rows.append(measure_beside(further, row, loaded.model, dense))
    return rows


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().vocab_size)


def _logit_bytes(model: PreTrainedModel, windows: Tensor) -> int:
    return windows.numel() * _vocabulary(model) * torch.finfo(model.dtype).bits // 8


def _batch_size(model: PreTrainedModel, length: int) -> int:
    return max(1, min(8, BATCH_BYTES // (4 * length * _vocabulary(model))))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
