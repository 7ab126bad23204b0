"""What an evaluation measured beside its first text, on the page: other texts, generated text, long contexts, seeds."""

from __future__ import annotations

from dataclasses import dataclass

from compress.evaluation.figures import CheckpointFigures, Evaluation
from compress.report.tables import QUALITY, Cell, Row, Table, number, quality_cells, with_error
from compress.system import units as words


def further_tables(evaluation: Evaluation, own: CheckpointFigures | None) -> list[Table]:
    """A table for each further text, for what was generated, and for the long context."""
    kinds = ["dense", *("own" if row is own else "" for row in evaluation.candidates)]
    tables = []
    for index, text in enumerate(evaluation.reference.texts):
        rows = [
            Row(
                row.name,
                (with_error(one.perplexity, one.perplexity_error, words.figure), *quality_cells(one)),
                kind,
            )
            for row, kind in zip(evaluation.rows, kinds, strict=True)
            for one in row.texts[index : index + 1]
        ]
        caption = f"On {text.text}, {text.windows} windows"
        tables.append(Table(caption, "checkpoint", ("perplexity", *QUALITY), tuple(rows)))
    return [*tables, *_generated(evaluation, kinds), *_needle(evaluation, kinds)]


def _generated(evaluation: Evaluation, kinds: list[str]) -> list[Table]:
    rows = []
    for row, kind in zip(evaluation.rows, kinds, strict=True):
        if (made := row.generation) is None:
            continue
        same = None if made.agreement is None else made.agreement
        cells = (
            number(made.repetition, words.percent),
            Cell(words.NOTHING if same is None else f"{same:.1f} of {made.tokens}", same),
            number(made.recall, words.percent),
        )
        rows.append(Row(row.name, cells, kind))
    columns = ("repeated runs of 4 tokens", "tokens as the dense model", "recall of a list")
    return [Table("Generated greedily", "checkpoint", columns, tuple(rows))] if rows else []


def _needle(evaluation: Evaluation, kinds: list[str]) -> list[Table]:
    rows, context = [], 0
    for row, kind in zip(evaluation.rows, kinds, strict=True):
        if (found := row.needle) is not None:
            context = found.context
            cells = (Cell(f"{found.found} of {found.of}", found.found), number(found.nll, words.significant))
            rows.append(Row(row.name, cells, kind))
    caption = f"A number hidden in {context:,} tokens"
    columns = ("found", "nats for a token of the answer")
    return [Table(caption, "checkpoint", columns, tuple(rows))] if rows else []


def seed_sentences(evaluation: Evaluation) -> list[str]:
    """What the seed alone changes."""
    return [
        f"{one.recipe} under {len(one.names)} seeds ({words.listed(one.names)}): KL {words.divergence(one.kl)} with a standard "
        f"deviation of {words.divergence(one.deviation)}. Smaller differences between recipes say nothing."
        for one in evaluation.seeds
    ]


@dataclass(frozen=True)
class Sample:
    """A prompt, and for each checkpoint its name, what it says as the dense model does, and the rest."""

    prompt: str
    texts: list[tuple[str, str, str]]


def samples(evaluation: Evaluation) -> list[Sample]:
    """The continuations side by side."""
    out = []
    for index, prompt in enumerate(evaluation.prompts):
        rows = [
            (row.name, row.continuations[index]) for row in evaluation.rows if index < len(row.continuations)
        ]
        if rows:
            dense = rows[0][1]
            out.append(Sample(prompt, [(name, *_split(dense, text)) for name, text in rows]))
    return out


def _split(dense: str, text: str) -> tuple[str, str]:
    """A text at the first character that the dense model's has otherwise."""
    pairs = zip(dense, text, strict=False)
    same = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(dense), len(text)))
    return text[:same], text[same:]
