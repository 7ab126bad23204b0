"""The figures of one loaded checkpoint, alone or against the reference's outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from compress_kernels.forward import quick_forward
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compress.errors import UserError
from compress.evaluation.divergence import Tally, token_figures
from compress.evaluation.embeddings import MEAN, EmbeddingTally, encode_rate, hidden_states
from compress.evaluation.figures import CheckpointFigures, TaskFigure
from compress.evaluation.size import folder_size, outside_bytes
from compress.evaluation.speed import decode_rate, loaded_bytes, prefill_rate
from compress.evaluation.subjects import Subject
from compress.evaluation.tasks import run_tasks

Progress = Callable[[str, int, int], None]
"""Called with the checkpoint's name, the windows done and all windows."""


@dataclass(frozen=True)
class Measurement:
    """What is measured and how: the same for every checkpoint of an evaluation."""

    windows: Tensor
    batch_size: int
    parameters: int
    tokenizer: PreTrainedTokenizerBase
    speed: bool
    tasks: tuple[str, ...]
    include_path: str | Path | None
    task_limit: int | None
    progress: Progress | None
    pooling: str | None = None


@dataclass(frozen=True)
class Opened:
    """A loaded model and the seconds it took to load."""

    model: PreTrainedModel
    seconds: float


def measure(
    job: Measurement,
    subject: Subject,
    loaded: Opened,
    *,
    keep_in: list[Tensor] | None = None,
    against: Iterator[Tensor] | None = None,
) -> CheckpointFigures:
    """All figures of one loaded model; `against` yields the reference's logits batch by batch."""
    if job.pooling is not None:
        return _measure_embeddings(job, subject, loaded, keep_in=keep_in, against=against)
    model = loaded.model
    memory = loaded_bytes(model)
    logits = batches_of_logits(model, job.windows, job.batch_size)
    figures = compare_logits(
        job.windows, logits, against, name=subject.name, keep_in=keep_in, progress=job.progress
    )
    size = folder_size(subject.weights)
    decode = prefill = None
    if job.speed:
        prefill = prefill_rate(model, job.windows[0])
        decode = decode_rate(model, job.windows[0])
    tasks: tuple[TaskFigure, ...] = ()
    if job.tasks:
        tasks = run_tasks(
            model,
            job.tokenizer,
            job.tasks,
            include_path=job.include_path,
            limit=job.task_limit,
            progress=_on_tasks(job, subject.name),
        )
    broken = not math.isfinite(figures.perplexity)
    return CheckpointFigures(
        name=subject.name,
        path=subject.path,
        perplexity=figures.perplexity,
        kl=figures.kl,
        kl_error=figures.kl_error,
        top1=figures.top1,
        top1_error=figures.top1_error,
        perplexity_error=figures.perplexity_error,
        perplexity_ratio=figures.ratio,
        perplexity_ratio_error=figures.ratio_error,
        kl_99=figures.kl_quantile(0.99),
        kl_999=figures.kl_quantile(0.999),
        rms_shift=figures.rms_shift,
        calibration_error=figures.calibration_error,
        bytes_on_disk=size.files if size else None,
        outside_bytes=outside_bytes(subject.weights, model),
        bits_per_weight=8 * size.tensors / job.parameters if size else None,
        loaded_bytes=memory,
        load_seconds=loaded.seconds,
        prefill_tokens_per_second=prefill,
        decode_tokens_per_second=decode,
        tasks=tasks,
        notes=("The perplexity is not finite: this checkpoint is broken.",) if broken else (),
    )


def _on_tasks(job: Measurement, name: str) -> Progress | None:
    """Tell the harness's progress as this checkpoint's."""
    if job.progress is None:
        return None
    told = job.progress
    return lambda what, done, total: told(f"{name}: {what.lower() or 'tasks'}", done, total)


def _measure_embeddings(
    job: Measurement,
    subject: Subject,
    loaded: Opened,
    *,
    keep_in: list[Tensor] | None,
    against: Iterator[Tensor] | None,
) -> CheckpointFigures:
    """The same for a model whose hidden states are what it is used for."""
    tally = EmbeddingTally(job.pooling or MEAN)
    done = 0
    for hidden in hidden_states(loaded.model, job.windows, job.batch_size):
        if against is not None:
            reference = next(against)
            if reference.shape != hidden.shape:
                raise UserError(
                    f"{subject.name} has hidden states of width {hidden.shape[-1]} and the reference {reference.shape[-1]}: "
                    "evaluate it against its own dense model."
                )
            tally.add(hidden, reference)
        if keep_in is not None:
            keep_in.append(hidden.cpu())
        done += len(hidden)
        if job.progress is not None:
            job.progress(subject.name, done, len(job.windows))
    size = folder_size(subject.weights)
    measured = against is not None
    return CheckpointFigures(
        name=subject.name,
        path=subject.path,
        perplexity=math.nan,
        hidden_error=tally.hidden_error if measured else None,
        cosine=tally.cosine if measured else None,
        cosine_min=tally.cosine_min if measured else None,
        bytes_on_disk=size.files if size else None,
        outside_bytes=outside_bytes(subject.weights, loaded.model),
        bits_per_weight=8 * size.tensors / job.parameters if size else None,
        loaded_bytes=loaded_bytes(loaded.model),
        load_seconds=loaded.seconds,
        prefill_tokens_per_second=encode_rate(loaded.model, job.windows[0]) if job.speed else None,
    )


def outputs(job: Measurement, model: PreTrainedModel) -> Iterator[Tensor]:
    """What two models are compared by: logits, or the hidden states of an embedding model."""
    if job.pooling is not None:
        return hidden_states(model, job.windows, job.batch_size)
    return batches_of_logits(model, job.windows, job.batch_size)


def compare_logits(
    windows: Tensor,
    logits: Iterator[Tensor],
    against: Iterator[Tensor] | None = None,
    *,
    name: str = "this model",
    keep_in: list[Tensor] | None = None,
    progress: Progress | None = None,
) -> Tally:
    """Tally the figures of a model's logits, batch by batch.

    Args:
        windows: int64 `[windows, length]`.
        logits: yields `[batch, length, vocabulary]` until all windows are covered.
        against: the reference's logits in the same batches; None measures perplexity only.
        keep_in: a list to which each batch of logits is appended, on the CPU, in the dtype in which it came.

    Raises UserError if the two vocabularies differ in size.
    """
    tally = Tally()
    done = 0
    for batch in logits:
        reference = None if against is None else next(against)
        if reference is not None and reference.shape != batch.shape:
            raise UserError(
                f"{name} predicts {batch.shape[-1]} tokens and the reference {reference.shape[-1]}: "
                "evaluate it against its own dense model."
            )
        tally.add(token_figures(windows[done : done + len(batch)], batch, reference))
        if keep_in is not None:
            keep_in.append(batch.cpu())
        done += len(batch)
        if progress is not None:
            progress(name, done, len(windows))
    return tally


@torch.inference_mode()
def batches_of_logits(model: PreTrainedModel, windows: Tensor, batch_size: int) -> Iterator[Tensor]:
    """The logits of windows, int64 `[windows, length]`, by batch: `[batch, length, vocabulary]`."""
    for batch in windows.split(batch_size):
        with quick_forward():
            logits = model(input_ids=batch.to(model.device), use_cache=False).logits
        yield logits
