"""Tables that a reader may sort: a text for the eye and a number for the order in each cell."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compress.evaluation.figures import CheckpointFigures, TextFigures
from compress.system import units as words


@dataclass(frozen=True)
class Cell:
    """What is shown, and the number that the column is sorted by; None stands behind all numbers."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Row:
    """The head of a line and its cells; ``kind`` is "dense", "own" or nothing, for the style sheet."""

    name: str
    cells: tuple[Cell, ...]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A caption for those who do not see it, the heads of all columns but the first, and the lines."""

    caption: str
    first: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def number(value: float | None, text: Callable[[float | None], str]) -> Cell:
    """A cell of a figure; what is no number is not sorted by."""
    return Cell(text(value), value if value is not None and math.isfinite(value) else None)


def with_error(value: float | None, error: float | None, text: Callable[[float | None], str]) -> Cell:
    """A figure with its standard error."""
    shown = text(value)
    if error is not None and math.isfinite(error) and shown != words.NOTHING:
        shown += f" ± {text(error)}"
    return Cell(shown, number(value, text).value)


QUALITY = (
    "KL, nats",
    "KL of 99%",
    "KL of 99.9%",
    "RMS Δp",
    "same top-1",
    "perplexity ratio",
    "calibration error",
)
"""The heads of :func:`quality_cells`."""


def quality_cells(row: CheckpointFigures | TextFigures | None) -> tuple[Cell, ...]:
    """How far a checkpoint is from the dense one; dashes where it was not measured."""
    if row is None:
        return (Cell(words.NOTHING),) * len(QUALITY)
    return (
        with_error(row.kl, row.kl_error, words.divergence),
        number(row.kl_99, words.divergence),
        number(row.kl_999, words.divergence),
        number(row.rms_shift, words.percent),
        with_error(row.top1, row.top1_error, words.percent),
        with_error(row.perplexity_ratio, row.perplexity_ratio_error, _ratio),
        number(row.calibration_error, words.percent),
    )


def _ratio(value: float | None) -> str:
    return words.figure(value, 4)


def evaluation_table(rows: Sequence[CheckpointFigures], own: CheckpointFigures | None) -> Table:
    """Every figure of an evaluation, the dense model's first."""
    sizes = ("on disk", "embeddings, head", "bits per weight", "perplexity")
    columns = (*sizes, *QUALITY, "load", "prefill, tokens/s", "decode, tokens/s")
    lines = tuple(
        Row(
            row.name,
            (
                number(row.bytes_on_disk, words.in_bytes),
                number(row.outside_bytes, words.in_bytes),
                number(row.bits_per_weight, words.figure),
                with_error(row.perplexity, row.perplexity_error, words.figure),
                *quality_cells(row),
                number(row.load_seconds, words.in_time),
                number(row.prefill_tokens_per_second, words.rate),
                number(row.decode_tokens_per_second, words.rate),
            ),
            "dense" if index == 0 else "own" if row is own else "",
        )
        for index, row in enumerate(rows)
    )
    return Table("All figures", "checkpoint", columns, lines)
