"""`compress report`: the report of a run, written again, with an evaluation if there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compress.evaluation import Evaluation
from compress.report import write_report
from compress_cli import options
from compress_cli.display import print_json, screen


def report(
    out: options.Checkpoint,
    evaluation: Annotated[
        Path | None,
        typer.Option(
            "--eval", help="Figures from `compress eval --save`, to be drawn in it.", show_default=False
        ),
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="Where to write it.", show_default="OUT/report.html", metavar="FILE")
    ] = None,
    json: options.Json = False,
) -> None:
    """Write the report of a compressed checkpoint: one HTML file that works offline.

    Examples:

    `compress eval ./my-model ./my-model-w4 --save figures.json`

    `compress report ./my-model-w4 --eval figures.json`
    """
    path = write_report(out, to, evaluation=None if evaluation is None else Evaluation.read(evaluation))
    if json:
        print_json({"report": path})
    else:
        screen().print(f"{path}", markup=False)
