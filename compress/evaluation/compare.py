"""Perplexity, KL divergence, agreement, bytes and speed of several checkpoints against a dense one."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compress.assets import EMBEDDED, embedded_model, embedded_text
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.evaluation.divergence import Tally, token_figures
from compress.evaluation.embeddings import MEAN, EmbeddingTally, encode_rate, hidden_states, pooling_of
from compress.evaluation.figures import CheckpointFigures, Evaluation, TaskFigure
from compress.evaluation.size import folder_size
from compress.evaluation.speed import decode_rate, loaded_bytes, prefill_rate
from compress.evaluation.tasks import run_tasks
from compress.evaluation.windows import check_same_tokenizer, read_documents, text_windows
from compress.models.architecture import predicts_next_token
from compress.system.device import resolve_device
from compress.text.frame import framed, special_tokens_around
from compress.text.limits import check_token_ids, embedding_rows, fit_length, reserved_positions
from compress.text.records import Document
from compress.text.tokenize import load_tokenizer, resolve_bos

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KEEP_BYTES = 2 << 30
"""The reference's logits are kept in memory up to so many bytes; above, both models run side by side."""
BATCH_BYTES = 256 << 20
"""An unset batch size is chosen so that the logits of a batch stay under this."""
PROBE_CHARACTERS = 20_000

Progress = Callable[[str, int, int], None]
"""Called with the checkpoint's name, the windows done and all windows."""


class Loader(Protocol):
    """What `compress.load` is: a folder or hub name → a model in evaluation mode."""

    def __call__(
        self, path: str | Path, *, dtype: torch.dtype, device: torch.device, trust_remote_code: bool = False
    ) -> PreTrainedModel: ...


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


def evaluate(
    reference: str | Path,
    candidates: Sequence[str | Path],
    *,
    text: str | Path,
    load: Loader,
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
    trust_remote_code: bool = False,
    keep_bytes: int = KEEP_BYTES,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure checkpoints side by side on consecutive windows of one text.

    Args:
        reference: the dense model: a folder, a hub name, or "embedded" for the one that ships with the package.
        candidates: folders or hub names of compressed ones; may be empty.
        text: a UTF-8 text file, a `.jsonl` or `.json` file of documents, or "embedded" for the shipped held-out text.
        load: turns a path into a model.
        length: context length in tokens; shortened, with a note, to the longest that all models take.
        limit: number of windows; None takes the whole text.
        bos: begin each window with the BOS token; None does as the tokenizer does by itself.
        dtype: "fp32", "bf16" or "fp16": what the models compute in; all figures are computed in fp32.
        batch_size: windows at once; None chooses by the size of the logits.
        speed: measure prefill and decoding too.
        tasks, include_path, task_limit: lm-evaluation-harness tasks, see `run_tasks`.
        keep_bytes: limit on the reference's logits kept in memory; above it the two models run in lockstep,
            which needs both in memory and runs the reference once more for every candidate.

    Raises UserError for a text that is missing, empty or shorter than one window, for an unknown dtype, and
    for candidates with another tokenizer or vocabulary than the reference.
    """
    if dtype not in DTYPES:
        raise UserError(f"Unknown dtype {dtype}: take one of {', '.join(DTYPES)}.")
    target = resolve_device(device)
    file = Path(embedded_text("heldout") if str(text) == EMBEDDED else text)
    documents = read_documents(file)
    # Whatever is wrong with a checkpoint's files is said before the first model is loaded.
    subjects = _subjects([reference, *candidates], trust_remote_code)
    tokenizer = _common_tokenizer(subjects, _probe(documents), trust_remote_code)
    with_bos = resolve_bos(bos, tokenizer)

    def opened(subject: _Subject) -> _Opened:
        start = time.perf_counter()
        model = load(subject.path, dtype=DTYPES[dtype], device=target, trust_remote_code=trust_remote_code)
        return _Opened(model.eval(), time.perf_counter() - start)

    dense = opened(subjects[0])
    length, note = fit_length(dense.model.config, length, reserved_positions(dense.model))
    notes = [note] if note else []
    pooling = None if predicts_next_token(dense.model) else pooling_of(subjects[0].folder)
    if pooling is not None:
        if tasks:
            raise UserError(
                f"Tasks need a language model, and a {type(dense.model).__name__} predicts no tokens."
            )
        with_bos = False
        before, behind = special_tokens_around(tokenizer)
        inner = length - len(before) - len(behind)
        windows = framed(text_windows(documents, tokenizer, length=inner, limit=limit), before, behind)
    else:
        windows = text_windows(documents, tokenizer, length=length, limit=limit, bos=with_bos)
    check_token_ids(windows, embedding_rows(dense.model), file.name)
    if limit is not None and len(windows) < limit:
        notes.append(
            f"The text holds {len(windows)} windows of {length} tokens, fewer than the {limit} asked for."
        )
    job = Measurement(
        windows=windows,
        batch_size=batch_size or _batch_size(dense.model, length),
        parameters=_parameters(subjects[0].folder, dense.model),
        tokenizer=tokenizer,
        speed=speed,
        tasks=tuple(tasks),
        include_path=include_path,
        task_limit=task_limit,
        progress=progress,
        pooling=pooling,
    )
    keep = len(subjects) > 1 and _logit_bytes(dense.model, windows) <= keep_bytes
    holder = [dense]
    del dense
    rows = _rows(job, subjects, holder, opened, keep=keep)
    return Evaluation(
        reference=rows[0],
        candidates=tuple(rows[1:]),
        text=file.name,
        length=length,
        windows=len(windows),
        dtype=dtype,
        device=_device_name(target),
        threads=torch.get_num_threads(),
        bos=with_bos,
        notes=tuple(notes),
        pooling=pooling,
    )


@dataclass(frozen=True)
class _Subject:
    """A checkpoint: its label, the path as the user gave it, and the folder of its files."""

    name: str
    path: str
    folder: Path


@dataclass(frozen=True)
class _Opened:
    """A loaded model and the seconds it took to load."""

    model: PreTrainedModel
    seconds: float


def _rows(
    job: Measurement,
    subjects: Sequence[_Subject],
    dense: list[_Opened],
    opened: Callable[[_Subject], _Opened],
    *,
    keep: bool,
) -> list[CheckpointFigures]:
    """Measure the reference, which `dense` alone holds, then one candidate after the other."""
    kept: list[Tensor] = []
    rows = [_measure(job, subjects[0], dense[0], keep_in=kept if keep else None)]
    if keep:
        # The logits say all that is needed of the reference: from here on only one model is in memory at a time.
        dense.clear()
    for subject in subjects[1:]:
        gc.collect()
        against = iter(kept) if keep else _outputs(job, dense[0].model)
        rows.append(_measure(job, subject, opened(subject), against=against))
    return rows


def _measure(
    job: Measurement,
    subject: _Subject,
    loaded: _Opened,
    *,
    keep_in: list[Tensor] | None = None,
    against: Iterator[Tensor] | None = None,
) -> CheckpointFigures:
    """All figures of one loaded model; `against` yields the reference's logits batch by batch."""
    if job.pooling is not None:
        return _measure_embeddings(job, subject, loaded, keep_in=keep_in, against=against)
    model = loaded.model
    memory = loaded_bytes(model)
    logits = _logits(model, job.windows, job.batch_size)
    figures = compare_logits(
        job.windows, logits, against, name=subject.name, keep_in=keep_in, progress=job.progress
    )
    size = folder_size(subject.folder)
    decode = prefill = None
    if job.speed:
        prefill = prefill_rate(model, job.windows[0])
        decode = decode_rate(model, job.windows[0])
    tasks: tuple[TaskFigure, ...] = ()
    if job.tasks:
        tasks = run_tasks(
            model, job.tokenizer, job.tasks, include_path=job.include_path, limit=job.task_limit
        )
    broken = not math.isfinite(figures.perplexity)
    return CheckpointFigures(
        name=subject.name,
        path=subject.path,
        perplexity=figures.perplexity,
        kl=figures.kl,
        kl_error=figures.kl_error,
        top1=figures.top1,
        bytes_on_disk=size.files if size else None,
        bits_per_weight=8 * size.tensors / job.parameters if size else None,
        loaded_bytes=memory,
        load_seconds=loaded.seconds,
        prefill_tokens_per_second=prefill,
        decode_tokens_per_second=decode,
        tasks=tasks,
        notes=("The perplexity is not finite: this checkpoint is broken.",) if broken else (),
    )


def _measure_embeddings(
    job: Measurement,
    subject: _Subject,
    loaded: _Opened,
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
    size = folder_size(subject.folder)
    measured = against is not None
    return CheckpointFigures(
        name=subject.name,
        path=subject.path,
        perplexity=math.nan,
        hidden_error=tally.hidden_error if measured else None,
        cosine=tally.cosine if measured else None,
        cosine_min=tally.cosine_min if measured else None,
        bytes_on_disk=size.files if size else None,
        bits_per_weight=8 * size.tensors / job.parameters if size else None,
        loaded_bytes=loaded_bytes(loaded.model),
        load_seconds=loaded.seconds,
        prefill_tokens_per_second=encode_rate(loaded.model, job.windows[0]) if job.speed else None,
    )


def _outputs(job: Measurement, model: PreTrainedModel) -> Iterator[Tensor]:
    """What two models are compared by: logits, or the hidden states of an embedding model."""
    if job.pooling is not None:
        return hidden_states(model, job.windows, job.batch_size)
    return _logits(model, job.windows, job.batch_size)


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
def _logits(model: PreTrainedModel, windows: Tensor, batch_size: int) -> Iterator[Tensor]:
    for batch in windows.split(batch_size):
        yield model(input_ids=batch.to(model.device), use_cache=False).logits


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().vocab_size)


def _logit_bytes(model: PreTrainedModel, windows: Tensor) -> int:
    return windows.numel() * _vocabulary(model) * torch.finfo(model.dtype).bits // 8


def _batch_size(model: PreTrainedModel, length: int) -> int:
    return max(1, min(8, BATCH_BYTES // (4 * length * _vocabulary(model))))


def _parameters(path: str | Path, model: PreTrainedModel) -> int:
    """Numbers in the dense model: those it stores; where it is packed itself, those of its architecture."""
    size = folder_size(path)
    if size is not None and getattr(model.config, "quantization_config", None) is None:
        return size.elements
    return model.num_parameters()


def _subjects(paths: Sequence[str | Path], trust_remote_code: bool) -> list[_Subject]:
    """Open each checkpoint's folder; a name on the hub is downloaded into its cache."""
    folders = [
        embedded_model()
        if str(path) == EMBEDDED
        else open_source(path, trust_remote_code=trust_remote_code).path
        for path in paths
    ]
    return [
        _Subject(name, str(path), folder)
        for name, path, folder in zip(_names(paths), paths, folders, strict=True)
    ]


def _probe(documents: Sequence[Document]) -> str:
    """The beginning of the text, where it has not been tokenized already."""
    return next((text[:PROBE_CHARACTERS] for text in documents if isinstance(text, str)), "")


def _common_tokenizer(
    subjects: Sequence[_Subject], probe: str, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    """The reference's tokenizer, once it is sure that all others are the same."""
    first = load_tokenizer(subjects[0].folder, trust_remote_code=trust_remote_code)
    for subject in subjects[1:]:
        other = load_tokenizer(subject.folder, trust_remote_code=trust_remote_code)
        check_same_tokenizer(first, other, subject.path, probe)
    return first


def _names(paths: Sequence[str | Path]) -> list[str]:
    """The last part of each path; the whole path for those that would be alike."""
    short = [Path(path).resolve().name if Path(path).is_dir() else str(path) for path in paths]
    return [str(path) if short.count(name) > 1 else name for name, path in zip(short, paths, strict=True)]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
