"""`compress eval`: what a compressed checkpoint costs in quality, beside the dense one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import compress as api
from compress.assets import EMBEDDED
from compress.system import units as words
from compress_cli import library, options
from compress_cli.display import print_json, screen, table
from compress_cli.further import plus_minus, show_further
from compress_cli.progress import windows_bar

if TYPE_CHECKING:
    from compress.evaluation import CheckpointFigures, Evaluation

Reference = Annotated[
    str,
    typer.Argument(
        help="The reference: the dense model, as a folder, a hub name or `embedded`.",
        metavar="MODEL",
        callback=options.checkpoints,
        show_default=False,
    ),
]
Outs = Annotated[
    list[str] | None,
    typer.Argument(
        help="Checkpoints to compare with it.",
        metavar="[OUT]...",
        show_default=False,
        callback=options.checkpoints,
    ),
]
Text = Annotated[
    list[str],
    typer.Option(
        help="A UTF-8 text, .jsonl or .json file that no recipe was calibrated on; `embedded` is Python's documentation, "
        "`prose` a novel. May be given several times; the first is for the headline.",
        metavar="FILE",
        callback=options.readable_files,
    ),
]
Foreign = Annotated[
    bool,
    typer.Option(
        "--foreign/--no-foreign",
        help="Measure on `prose` too: a text of another domain than most calibration.",
    ),
]
CalibrationText = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        help="The calibration text: tells by measured coverage which texts are of its domain.",
        show_default="the shipped one, where it was used",
        metavar="FILE",
        callback=options.readable_files,
    ),
]
Prompts = Annotated[
    int,
    typer.Option(
        min=0,
        help="Beginnings of windows to continue: repetition, agreement, recall, and the text side by side.",
    ),
]
NeedleOption = Annotated[
    bool,
    typer.Option(
        "--needle",
        help="Ask for a number that is hidden in a context as long as the model takes, up to 4096 tokens.",
    ),
]
Windows = Annotated[
    int | None,
    typer.Option(min=1, help="Windows from the start of the text.", show_default="all of them"),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        help="Tasks of lm-evaluation-harness, by name; may be given several times. Needs `compress-llm[eval]`.",
        metavar="TASK",
        show_default=False,
    ),
]
TaskFolder = Annotated[
    Path | None, typer.Option(help="A folder with task files of your own.", show_default=False)
]
TaskLimit = Annotated[
    int | None, typer.Option(min=1, help="Examples of each task.", show_default="all of them")
]
Save = Annotated[
    Path | None,
    typer.Option(help="Write the figures to a file, for `compress report --eval`.", show_default=False),
]


def evaluate(
    model: Reference,
    outs: Outs = None,
    text: Text = [EMBEDDED],  # noqa: B006  # typer copies it
    length: Annotated[int, typer.Option(min=2, help="Context length: tokens per window.")] = 2048,
    limit: Windows = None,
    bos: options.Bos = None,
    tasks: Tasks = None,
    include_path: TaskFolder = None,
    task_limit: TaskLimit = None,
    foreign: Foreign = True,
    calibration: CalibrationText = None,
    prompts: Prompts = 0,
    needle: NeedleOption = False,
    dtype: Annotated[options.Dtype, typer.Option(help="What the models compute in.")] = options.Dtype.bf16,
    device: options.Device = "auto",
    speed: Annotated[bool, typer.Option(help="Measure tokens per second too.")] = True,
    save: Save = None,
    trust_remote_code: options.TrustRemoteCode = False,
    check: options.Check = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure checkpoints side by side: perplexity, divergence from the dense model, agreement, bytes, speed.

    Of an embedding model it measures the cosine of the pooled embedding and the error of the last hidden states instead.

    Examples:

    `compress eval ./my-model ./my-model-w4 ./my-model-w3 --text notes.txt --length 2048`

    `compress eval ./my-model ./my-model-w4 --text notes.txt --text letters.txt --prompts 4 --needle`

    `compress eval ./my-model ./my-model-w4 --tasks hellaswag --tasks arc_easy --task-limit 200`
    """
    if save is not None:
        library.Evaluation.check_place(save)
    with windows_bar(quiet=quiet) as progress:
        evaluation = api.evaluate(
            options.local(model),
            [options.local(out) for out in outs or []],
            text=text,
            length=length,
            limit=limit,
            bos=bos,
            dtype=dtype.value,
            device=device,
            speed=speed,
            tasks=tasks or [],
            include_path=include_path,
            task_limit=task_limit,
            foreign=foreign,
            calibration=calibration,
            prompts=prompts,
            needle=needle,
            trust_remote_code=trust_remote_code,
            check=check,
            progress=progress,
        )
    if save is not None:
        evaluation.save(save)
    if json:
        print_json(evaluation)
    else:
        show(evaluation)


def show(evaluation: Evaluation) -> None:
    """Print the figures side by side, and under them how they were measured."""
    if evaluation.pooling is not None:
        _show_embeddings(evaluation)
        return
    speed = any(row.decode_tokens_per_second is not None for row in evaluation.rows)
    columns = {
        "": "left",
        "bytes": "right",
        "embeddings, head": "right",
        "bits/weight": "right",
        "perplexity": "right",
    }
    columns |= {"KL to dense": "right", "same top-1": "right", "loads in": "right"}
    columns |= {"prefill tok/s": "right", "decode tok/s": "right"} if speed else {}
    table(None, columns, [_row(row, speed=speed) for row in evaluation.rows])
    console = screen()
    console.print(
        f"Measured at {evaluation.context}; KL in nats, mean over {evaluation.tokens} tokens.", markup=False
    )
    _show_distribution(evaluation)
    show_further(evaluation)
    _show_tasks(evaluation.rows)
    _show_notes(evaluation)


def _show_distribution(evaluation: Evaluation) -> None:
    """How the divergence is spread over the tokens, and whether probabilities come true."""
    columns = {"": "left", "KL of 99%": "right", "KL of 99.9%": "right", "RMS Δp": "right"}
    columns |= {"perplexity ratio": "right", "calibration error": "right"}
    cells = [
        [
            row.name,
            words.divergence(row.kl_99),
            words.divergence(row.kl_999),
            words.percent(row.rms_shift),
            plus_minus(
                row.perplexity_ratio, row.perplexity_ratio_error, lambda value: words.figure(value, 4)
            ),
            words.percent(row.calibration_error),
        ]
        for row in evaluation.rows
    ]
    table(None, columns, cells)
    screen().print(
        "99% (99.9%) of the tokens stay below that KL; Δp is the change in the next token's probability; the calibration error "
        "is how far the likeliest token's probability is from how often it is right.",
        markup=False,
    )


def _show_notes(evaluation: Evaluation) -> None:
    console = screen()
    for note in evaluation.notes:
        console.print(f"note: {note}", markup=False)
    for row in evaluation.rows:
        for note in row.notes:
            console.print(f"note: {row.name}: {note}", markup=False)


def _show_embeddings(evaluation: Evaluation) -> None:
    """An embedding model has no perplexity: its embeddings are held against the dense model's."""
    columns = {
        "": "left",
        "bytes": "right",
        "embeddings, head": "right",
        "bits/weight": "right",
        "cosine to dense": "right",
    }
    columns |= {"smallest": "right", "hidden error": "right", "loads in": "right", "tok/s": "right"}
    cells = [
        [
            row.name,
            words.in_bytes(row.bytes_on_disk),
            words.in_bytes(row.outside_bytes),
            words.figure(row.bits_per_weight),
            words.figure(row.cosine, 5),
            words.figure(row.cosine_min, 5),
            words.error_percent(row.hidden_error),
            words.in_time(row.load_seconds),
            words.rate(row.prefill_tokens_per_second),
        ]
        for row in evaluation.rows
    ]
    table(None, columns, cells)
    screen().print(
        f"Measured at {evaluation.context}; one embedding per window ({evaluation.pooling}), cosine to the dense model's.",
        markup=False,
    )
    _show_notes(evaluation)


def _row(row: CheckpointFigures, *, speed: bool) -> list[str]:
    cells = [
        row.name,
        words.in_bytes(row.bytes_on_disk),
        words.in_bytes(row.outside_bytes),
        words.figure(row.bits_per_weight),
        plus_minus(row.perplexity, row.perplexity_error, lambda value: words.figure(value, 3)),
        plus_minus(row.kl, row.kl_error, words.divergence),
        plus_minus(row.top1, row.top1_error, words.percent),
        words.in_time(row.load_seconds),
    ]
    if speed:
        cells += [words.rate(row.prefill_tokens_per_second), words.rate(row.decode_tokens_per_second)]
    return cells


def _show_tasks(rows: Sequence[CheckpointFigures]) -> None:
    measured = {(one.task, one.metric) for row in rows for one in row.tasks}
    if not measured:
        return
    cells = []
    for task, metric in sorted(measured):
        found = [
            next((one for one in row.tasks if (one.task, one.metric) == (task, metric)), None) for row in rows
        ]
        cells.append([task, metric, *(_task_cell(one.value, one.stderr) if one else "–" for one in found)])
    table(None, {"task": "left", "metric": "left", **{row.name: "right" for row in rows}}, cells)


def _task_cell(value: float, error: float | None) -> str:
    return words.figure(value, 4) + ("" if error is None else f" ± {words.figure(error, 4)}")
