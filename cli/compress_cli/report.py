"""`compress report`: the report of a run, on the screen and as a page, with evaluations; or several runs on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compress.errors import UserError
from compress.system import units as words
from compress_cli import library, options
from compress_cli.display import print_json, screen, table
from compress_cli.further import plus_minus

if TYPE_CHECKING:
    from compress.diagnose import Diagnosis
    from compress.evaluation import Evaluation
    from compress.report.compare import Comparison


def report(
    outs: Annotated[
        list[Path],
        typer.Argument(
            help="Folders that `compress run` wrote: one, or several of one model.",
            metavar="OUT...",
            callback=options.folders,
            show_default=False,
        ),
    ],
    evaluations: Annotated[
        list[Path] | None,
        typer.Option(
            "--eval",
            help="Figures from `compress eval --save`, to be drawn in it; may be given several times.",
            show_default="OUT/evaluation.json, if there is one",
            metavar="FILE",
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            help="The page to write.",
            show_default="OUT/report.html; of several, comparison.html here",
            metavar="FILE",
        ),
    ] = None,
    diagnose: Annotated[
        bool,
        typer.Option(
            "--diagnose",
            help="Diagnose OUT first, as `compress inspect --diagnose`, and keep it there as diagnosis.json.",
        ),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            help="A text for --diagnose.", show_default=False, metavar="TEXT", callback=options.readable
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="The dense model, for --diagnose.",
            show_default=False,
            metavar="MODEL",
            callback=options.checkpoints,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Print what a run did, and write it as one HTML page that works offline; of several runs, a comparison.

    With figures from `compress eval` they are written into the model card (`README.md`) of OUT, too.

    Examples:

    `compress eval ./my-model ./my-model-w4 --save figures.json`

    `compress report ./my-model-w4 --eval figures.json`

    `compress report ./my-model-w4 ./my-model-w3 --eval figures.json --to comparison.html`
    """
    measured = [library.Evaluation.read(file) for file in evaluations] if evaluations else None
    if not diagnose and (data is not None or against is not None):
        raise UserError("--data and --against belong to --diagnose: add it.")
    if len(outs) > 1:
        if diagnose:
            raise UserError("--diagnose looks at one output: name one, or leave it out.")
        _compare(outs, measured or [], to or Path("comparison.html"), json)
        return
    out = outs[0]
    figures = library.Report.read(out / "compress.json")
    kept = out / library.EVALUATION
    if measured is None and kept.is_file():
        measured = [library.Evaluation.read(kept)]
    path = to or out / "report.html"
    diagnosis = _diagnosis(out, diagnose, data, against)
    library.write_report(figures, measured, path, name=out.resolve().name, diagnosis=diagnosis)
    if measured:
        library.write_card(out, figures, measured)
    if json:
        print_json(figures.model_dump(mode="json"))
    else:
        library.print_report(figures)
        screen().print(f"\nreport: {path}", markup=False, soft_wrap=True)


def _diagnosis(out: Path, diagnose: bool, data: str | None, against: str | None) -> Diagnosis | None:
    """The diagnosis of an output: a new one, or the one that it has."""
    kept = out / library.DIAGNOSIS
    if not diagnose:
        return library.Diagnosis.read(kept) if kept.is_file() else None
    dense = None if against is None else options.local(against)
    found = library.diagnose(out, data=data, against=dense)
    found.save(kept)
    return found


def _compare(outs: Sequence[Path], evaluations: Sequence[Evaluation], path: Path, json: bool) -> None:
    comparison = library.compare(outs, evaluations)
    library.write_comparison(comparison, path)
    if json:
        print_json(
            {
                "outputs": {one.name: one.report.model_dump(mode="json") for one in comparison.outputs},
                "measured": comparison.measured,
                "warnings": comparison.warnings,
            }
        )
        return
    _show(comparison)
    screen().print(f"\ncomparison: {path}", markup=False, soft_wrap=True)


def _show(comparison: Comparison) -> None:
    """What a terminal has room for: bytes, divergence, agreement, time."""
    measured = comparison.measured[0] if comparison.measured else None
    columns = {"": "left", "recipe": "left", "bytes": "right", "KL to dense": "right", "same top-1": "right"}
    rows = []
    for output in comparison.outputs:
        figures = measured.rows.get(output.name) if measured else None
        kl = words.NOTHING if figures is None else plus_minus(figures.kl, figures.kl_error, words.divergence)
        rows.append(
            [
                output.name,
                output.report.recipe_name,
                words.in_bytes(output.report.bytes.actual),
                kl,
                words.NOTHING
                if figures is None
                else plus_minus(figures.top1, figures.top1_error, words.percent),
                words.in_time(output.report.seconds),
            ]
        )
    table(None, {**columns, "made in": "right"}, rows)
    console = screen()
    if measured is not None:
        console.print(f"Measured at {measured.context}; KL in nats.", markup=False)
    for warning in comparison.warnings:
        console.print(f"note: {warning}", markup=False)
