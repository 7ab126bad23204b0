"""What is measured beside the first text: further texts, continuations, recall, and long contexts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compress.evaluation.figures import CheckpointFigures, GenerationFigures, TextFigures
from compress.evaluation.generation import agreement, continue_prompts, repetition
from compress.evaluation.measure import Progress, batches_of_logits, compare_logits
from compress.evaluation.needle import Needle, find_needle
from compress.evaluation.recall import RecallTask, recall


@dataclass(frozen=True)
class FurtherText:
    """A text beside the first: its name and its windows, int64 ``[windows, length]``."""

    name: str
    windows: Tensor


@dataclass(frozen=True)
class Further:
    """What to measure beside the first text; nothing by default.

    Attributes:
        texts: further texts.
        prompts: int64 ``[prompts, length]``, to be continued greedily by ``new_tokens``; None for none.
        prompt_texts: the same as text.
        recall: a task to be answered by generation.
        needle: a sentence to be found in a long text.
    """

    tokenizer: PreTrainedTokenizerBase
    batch_size: int
    texts: tuple[FurtherText, ...] = ()
    prompts: Tensor | None = None
    prompt_texts: tuple[str, ...] = ()
    new_tokens: int = 48
    recall: RecallTask | None = None
    needle: Needle | None = None
    progress: Progress | None = None


@dataclass
class Dense:
    """What the dense model said, which the others are compared with.

    Attributes:
        logits: by text; empty where they are not kept and ``model`` runs once more for each of the others.
        continuations: int64 ``[prompts, new tokens]``.
    """

    keep: bool
    model: PreTrainedModel | None = None
    logits: list[list[Tensor]] = field(default_factory=list)
    continuations: Tensor | None = None


def measure_dense(
    job: Further, row: CheckpointFigures, model: PreTrainedModel, dense: Dense
) -> CheckpointFigures:
    """Add the dense model's figures to its row, and keep what the others are compared with."""
    dense.model = None if dense.keep else model
    figures = []
    for text in job.texts:
        kept: list[Tensor] | None = [] if dense.keep else None
        figures.append(_on_text(job, text, row.name, model, None, kept))
        if kept is not None:
            dense.logits.append(kept)
    row = replace(row, texts=tuple(figures))
    return _generate(job, row, model, dense, first=True)


def measure_beside(
    job: Further, row: CheckpointFigures, model: PreTrainedModel, dense: Dense
) -> CheckpointFigures:
    """Add a compressed model's figures to its row."""
    figures = []
    for index, text in enumerate(job.texts):
        figures.append(_on_text(job, text, row.name, model, _reference(job, dense, index), None))
    row = replace(row, texts=tuple(figures))
    return _generate(job, row, model, dense, first=False)


def _reference(job: Further, dense: Dense, index: int) -> Iterator[Tensor]:
    if dense.model is not None:
        return batches_of_logits(dense.model, job.texts[index].windows, job.batch_size)
    return iter(dense.logits[index])


def _on_text(
    job: Further,
    text: FurtherText,
    name: str,
    model: PreTrainedModel,
    against: Iterator[Tensor] | None,
    kept: list[Tensor] | None,
) -> TextFigures:
    logits = batches_of_logits(model, text.windows, job.batch_size)

    def tell(model_name: str, done: int, total: int) -> None:
        if job.progress is not None:
            job.progress(f"{model_name} on {text.name}", done, total)

    tally = compare_logits(text.windows, logits, against, name=name, keep_in=kept, progress=tell)
    return TextFigures(
        text=text.name,
        windows=len(text.windows),
        perplexity=tally.perplexity,
        perplexity_error=tally.perplexity_error,
        kl=tally.kl,
        kl_error=tally.kl_error,
        kl_99=tally.kl_quantile(0.99),
        kl_999=tally.kl_quantile(0.999),
        rms_shift=tally.rms_shift,
        top1=tally.top1,
        top1_error=tally.top1_error,
        perplexity_ratio=tally.ratio,
        perplexity_ratio_error=tally.ratio_error,
        calibration_error=tally.calibration_error,
    )


def _generate(
    job: Further, row: CheckpointFigures, model: PreTrainedModel, dense: Dense, *, first: bool
) -> CheckpointFigures:
    """Continuations, recall and the needle, of a model that generates."""
    if job.prompts is not None and model.can_generate():
        written = continue_prompts(model, job.prompts, job.new_tokens)
        if first:
            dense.continuations = written
        score = None if job.recall is None else recall(model, job.recall)
        same = None if first or dense.continuations is None else agreement(dense.continuations, written)
        figures = GenerationFigures(
            tokens=job.new_tokens,
            repetition=repetition(written),
            agreement=same,
            recall=score,
            recall_of=0 if job.recall is None else len(job.recall.prompts),
        )
        row = replace(row, generation=figures, continuations=_texts(job.tokenizer, written))
    if job.needle is not None:
        row = replace(row, needle=find_needle(model, job.needle))
    return row


def _texts(tokenizer: PreTrainedTokenizerBase, written: Tensor) -> tuple[str, ...]:
    return tuple(str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in written.tolist())
