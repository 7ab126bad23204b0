"""`compress bench`: how fast a checkpoint runs and what memory it takes, beside the dense one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from compress.system import units as words
from compress_cli import library, options
from compress_cli.display import print_json, screen, table

if TYPE_CHECKING:
    from compress.runtime.bench import BenchFigures, BenchSettings


def bench(
    out: options.AnyCheckpoint,
    source: Annotated[
        str | None,
        typer.Option(
            help="A checkpoint to set beside it: the dense one that it was made from, as a rule.",
            metavar="MODEL",
            callback=options.checkpoints,
            show_default=False,
        ),
    ] = None,
    prompt_length: Annotated[int, typer.Option(min=1, help="Tokens in each prompt.")] = 128,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens to write after it.")] = 32,
    batch: Annotated[int, typer.Option(min=1, help="Prompts at once.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Runs to take the median of.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="How often the checkpoints take turns.")] = 1,
    device: options.Device = "auto",
    dtype: options.Precision = options.Dtype.auto,
    threads: options.Threads = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = False,
) -> None:
    """Measure tokens per second and memory, each checkpoint in a process of its own.

    Memory is what the process holds beyond its imports; mapped files do not count.

    Examples:

    `compress bench ./my-model-w4 --source ./my-model --threads 2`

    `compress bench ./my-model-w4 --prompt-length 512 --new-tokens 64 --batch 4 --json`
    """
    settings = library.BenchSettings(
        prompt_length=prompt_length,
        new_tokens=new_tokens,
        batch=batch,
        repeats=repeats,
        threads=threads,
        device=device,
        dtype=dtype.value,
        trust_remote_code=trust_remote_code,
    )
    paths = [options.local(path) for path in (source, out) if path is not None]
    figures = library.bench(paths, settings, rounds=rounds)
    if json:
        print_json({"settings": settings, "figures": figures})
    else:
        _show(figures, settings)


def _show(figures: Sequence[BenchFigures], settings: BenchSettings) -> None:
    columns = {"": "left", "loads in": "right", "prefill tok/s": "right", "decode tok/s": "right"}
    rows = [_row(one) for one in figures]
    if len(figures) == 2:
        rows.append(_compared(*figures))
    table(None, columns | {"memory": "right", "at most": "right"}, rows)
    one = figures[0]
    screen().print(
        f"Medians of {len(one.decode_rates)}; batch {settings.batch}, {settings.prompt_length} tokens and "
        f"{settings.new_tokens} new ones, {one.dtype} on {one.device}, {one.threads} threads.",
        markup=False,
        soft_wrap=True,
    )


def _row(one: BenchFigures) -> list[str]:
    return [
        one.name,
        words.in_time(one.load_seconds),
        words.rate(one.prefill),
        words.rate(one.decode),
        words.in_bytes(one.memory_bytes),
        words.in_bytes(one.peak_bytes),
    ]


def _compared(source: BenchFigures, out: BenchFigures) -> list[str]:
    def times(ours: float | None, theirs: float | None) -> str:
        return words.NOTHING if not ours or not theirs else f"{words.figure(ours / theirs)} ×"

    return [
        "against the first",
        times(out.load_seconds, source.load_seconds),
        times(out.prefill, source.prefill),
        times(out.decode, source.decode),
        times(out.memory_bytes, source.memory_bytes),
        times(out.peak_bytes, source.peak_bytes),
    ]
