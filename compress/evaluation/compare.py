"""Perplexity, KL divergence, agreement, bytes and speed of several checkpoints against a dense one."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compress.assets import EMBEDDED, embedded_text
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.evaluation.embeddings import pooling_of
from compress.evaluation.figures import CheckpointFigures, Evaluation
from compress.evaluation.measure import Measurement, Opened, Progress, measure, outputs
from compress.evaluation.subjects import (
    Opener,
    Subject,
    common_tokenizer,
    open_subjects,
    parameter_count,
    probe_text,
)
from compress.evaluation.windows import read_documents, text_windows
from compress.models.architecture import predicts_next_token
from compress.system.device import resolve_device
from compress.text.frame import framed, special_tokens_around
from compress.text.limits import check_token_ids, embedding_rows, fit_length, reserved_positions
from compress.text.records import Document
from compress.text.tokenize import resolve_bos

_LOG = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KEEP_BYTES = 2 << 30
"""The reference's logits are kept in memory up to so many bytes; above, both models run side by side."""
BATCH_BYTES = 256 << 20
"""An unset batch size is chosen so that the logits of a batch stay under this."""


class Loader(Protocol):
    """What `compress.load` is: a folder or hub name → a model in evaluation mode."""

    def __call__(
        self, path: str | Path, *, dtype: torch.dtype, device: torch.device, trust_remote_code: bool = False
    ) -> PreTrainedModel: ...


def evaluate(
    reference: str | Path,
    candidates: Sequence[str | Path],
    *,
    text: str | Path,
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
        open_checkpoint: turns a path into a source.
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
    _LOG.info("reading %s", file)
    documents = read_documents(file)
    # Whatever is wrong with a checkpoint's files is said before the first model is loaded.
    subjects = open_subjects([reference, *candidates], trust_remote_code, open_checkpoint)
    tokenizer = common_tokenizer(subjects, probe_text(documents), trust_remote_code)

    def opened(subject: Subject) -> Opened:
        _LOG.info("loading %s", subject.name)
        start = time.perf_counter()
        model = load(subject.path, dtype=DTYPES[dtype], device=target, trust_remote_code=trust_remote_code)
        return Opened(model.eval(), time.perf_counter() - start)

    dense = opened(subjects[0])
    pooling = None if predicts_next_token(dense.model) else pooling_of(subjects[0].folder)
    if pooling is not None and tasks:
        raise UserError(
            f"Tasks need a language model, and a {type(dense.model).__name__} predicts no tokens."
        )
    with_bos = pooling is None and resolve_bos(bos, tokenizer)
    length, notes = _length(dense.model, length)
    _LOG.info("tokenizing %s", file.name)
    windows = _windows(
        documents, tokenizer, length=length, limit=limit, bos=with_bos, framing=pooling is not None
    )
    check_token_ids(windows, embedding_rows(dense.model), file.name)
    if limit is not None and len(windows) < limit:
        notes.append(
            f"The text holds {len(windows)} windows of {length} tokens, fewer than the {limit} asked for."
        )
    job = Measurement(
        windows=windows,
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


def _length(model: PreTrainedModel, length: int) -> tuple[int, list[str]]:
    """The context length that the model takes, and a note where that is less than was asked for."""
    fitting, note = fit_length(model.config, length, reserved_positions(model))
    return fitting, [note] if note else []


def _windows(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    limit: int | None,
    bos: bool,
    framing: bool,
) -> Tensor:
    """Windows of the text, int64 `[windows, length]`; with ``framing`` each stands between the tokenizer's special tokens."""
    if not framing:
        return text_windows(documents, tokenizer, length=length, limit=limit, bos=bos)
    before, behind = special_tokens_around(tokenizer)
    inner = length - len(before) - len(behind)
    return framed(text_windows(documents, tokenizer, length=inner, limit=limit), before, behind)


def _rows(
    job: Measurement,
    subjects: Sequence[Subject],
    dense: list[Opened],
    opened: Callable[[Subject], Opened],
    *,
    keep: bool,
) -> list[CheckpointFigures]:
    """Measure the reference, which `dense` alone holds, then one candidate after the other."""
    kept: list[Tensor] = []
    rows = [measure(job, subjects[0], dense[0], keep_in=kept if keep else None)]
    if keep:
        # The logits say all that is needed of the reference: from here on only one model is in memory at a time.
        dense.clear()
    for subject in subjects[1:]:
        gc.collect()
        against = iter(kept) if keep else outputs(job, dense[0].model)
        rows.append(measure(job, subject, opened(subject), against=against))
    return rows


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().vocab_size)


def _logit_bytes(model: PreTrainedModel, windows: Tensor) -> int:
    return windows.numel() * _vocabulary(model) * torch.finfo(model.dtype).bits // 8


def _batch_size(model: PreTrainedModel, length: int) -> int:
    return max(1, min(8, BATCH_BYTES // (4 * length * _vocabulary(model))))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
