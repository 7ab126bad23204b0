"""`compress report`: the report of a run, on the screen and as a page, with evaluations if there are any."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compress_cli import library, options
from compress_cli.display import print_json, screen


def report(
    out: options.Checkpoint,
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
        Path | None, typer.Option(help="The page to write.", show_default="OUT/report.html", metavar="FILE")
    ] = None,
    json: options.Json = False,
) -> None:
    """Print what a run did, and write it as one HTML page that works offline.

    With figures from `compress eval` they are written into the model card (`README.md`) of OUT, too.

    Examples:

    `compress eval ./my-model ./my-model-w4 --save figures.json`

    `compress report ./my-model-w4 --eval figures.json`
    """
    figures = library.Report.read(out / "compress.json")
    path = to or out / "report.html"
    measured = [library.Evaluation.read(file) for file in evaluations] if evaluations else None
    library.write_report(figures, measured, path, name=out.resolve().name)
    if measured:
        library.write_card(out, figures, measured)
    if json:
        print_json(figures.model_dump(mode="json"))
    else:
        library.print_report(figures)
        screen().print(f"\nreport: {path}", markup=False, soft_wrap=True)
