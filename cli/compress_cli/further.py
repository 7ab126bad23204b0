"""What `compress eval` prints below the first tables: further texts, seeds, generated text, long contexts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from compress.system import units as words
from compress_cli.display import screen, table
from compress_cli.samples import show_samples

if TYPE_CHECKING:
    from compress.evaluation import Evaluation


def plus_minus(value: float | None, error: float | None, text: Callable[[float | None], str]) -> str:
    """A figure with its standard error, where it has one."""
    return text(value) + (f" ± {text(error)}" if value is not None and error else "")


def show_further(evaluation: Evaluation) -> None:
    """Print whatever was measured beside the first text."""
    _texts(evaluation)
    _seeds(evaluation)
    _generation(evaluation)
    show_samples(evaluation)


def _texts(evaluation: Evaluation) -> None:
    if not evaluation.reference.texts:
        return
    cells = [
        [
            one.text,
            row.name,
            plus_minus(one.perplexity, one.perplexity_error, words.figure),
            plus_minus(
                one.perplexity_ratio, one.perplexity_ratio_error, lambda value: words.figure(value, 4)
            ),
            plus_minus(one.kl, one.kl_error, words.divergence),
            words.divergence(one.kl_99),
            plus_minus(one.top1, one.top1_error, words.percent),
        ]
        for index in range(len(evaluation.reference.texts))
        for row in evaluation.rows
        for one in row.texts[index : index + 1]
    ]
    right = ("perplexity", "ratio", "KL to dense", "KL of 99%", "same top-1")
    table("On other texts", {"text": "left", "": "left", **dict.fromkeys(right, "right")}, cells)


def _seeds(evaluation: Evaluation) -> None:
    for one in evaluation.seeds:
        screen().print(
            f"{one.recipe} over {len(one.names)} seeds: KL {words.divergence(one.kl)}, standard deviation "
            f"{words.divergence(one.deviation)}: smaller differences between recipes say nothing.",
            markup=False,
        )


def _generation(evaluation: Evaluation) -> None:
    if any(row.generation for row in evaluation.rows):
        cells = []
        for row in evaluation.rows:
            made = row.generation
            agrees = None if made is None or made.agreement is None else made.agreement
            tokens = 0 if made is None else made.tokens
            cells.append(
                [
                    row.name,
                    words.percent(None if made is None else made.repetition),
                    words.NOTHING if agrees is None else f"{agrees:.1f} of {tokens}",
                    words.percent(None if made is None else made.recall),
                ]
            )
        heads = ("repeated", "tokens as the dense model", "recall")
        table("Generated greedily", {"": "left", **dict.fromkeys(heads, "right")}, cells)
    if any(row.needle for row in evaluation.rows):
        cells = [
            [row.name, f"{row.needle.found} of {row.needle.of}", words.significant(row.needle.nll)]
            for row in evaluation.rows
            if row.needle is not None
        ]
        context = next(row.needle.context for row in evaluation.rows if row.needle is not None)
        columns = ("found", "nats for a token of the answer")
        table(f"A number hidden in {context} tokens", {"": "left", **dict.fromkeys(columns, "right")}, cells)
