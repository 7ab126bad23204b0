"""`compress demo`: the embedded model, dense and compressed in several ways, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

import compress as api
from compress.assets import EMBEDDED, embedded_model, embedded_text
from compress.errors import UserError
from compress.system import units as words
from compress_cli import library, options
from compress_cli.display import bar, print_json, screen, table
from compress_cli.progress import listener, windows_bar

if TYPE_CHECKING:
    from compress.evaluation import Evaluation

RECIPES = ["w8", "w4-rtn", "w4-gptq", "w3-gptq", "w2-gptq"]
SAMPLES, LENGTH, WINDOWS = 64, 256, 80
SHOWN = "w4-gptq"
"""The report is this recipe's, where it is among those that were run."""


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")] = Path("compress-demo"),
    recipes: Annotated[
        list[str] | None,
        typer.Option(
            help="A recipe to run; may be given several times.",
            show_default=", ".join(RECIPES),
            autocompletion=options.recipe_names,
        ),
    ] = None,
    windows: Annotated[int, typer.Option(min=2, help="Windows of held-out text to measure on.")] = WINDOWS,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier demo.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compress the model that ships with Compress in several ways and show what each costs.

    Takes under two minutes on two cores. Leaves a checkpoint for every recipe, `evaluation.json` and `report.html`.

    Examples:

    `compress demo`

    `compress demo --recipes w4-gptq --recipes ./mine.yaml --out try`
    """
    chosen = list(dict.fromkeys(recipes or RECIPES))
    folders = {name: out / Path(name).stem for name in chosen}
    if len(set(folders.values())) < len(folders):
        raise UserError("Two of the recipes would be written to the same folder; rename one of the files.")
    for name, folder in folders.items():
        _say(f"{name} …", quiet=quiet)
        api.compress(
            EMBEDDED,
            name,
            folder,
            samples=SAMPLES,
            length=LENGTH,
            overwrite=overwrite,
            progress=listener(quiet=quiet),
        )
    _say("measuring …", quiet=quiet)
    with windows_bar(quiet=quiet) as progress:
        evaluation = api.evaluate(
            embedded_model(),
            list(folders.values()),
            text=embedded_text("heldout"),
            length=LENGTH,
            limit=windows,
            dtype="fp32",
            speed=False,
            progress=progress,
        )
    evaluation.save(out / "evaluation.json")
    shown = folders.get(SHOWN) or next(iter(folders.values()))
    report = out / "report.html"
    library.write_report(library.Report.read(shown / "compress.json"), [evaluation], report, name=shown.name)
    if json:
        print_json({"evaluation": evaluation, "checkpoint": shown, "report": report})
    else:
        show(evaluation, screen())
        screen().print(f"checkpoint: {shown}\nreport:     {report}", markup=False)


def _say(text: str, *, quiet: bool) -> None:
    if not quiet:
        Console(stderr=True, highlight=False).print(text, markup=False)


def show(evaluation: Evaluation, console: Console) -> None:
    """Print the table, with a bar for the bytes and one for the divergence."""
    rows = evaluation.rows
    most_bytes = max(row.bytes_on_disk or 0 for row in rows)
    most_kl = max(row.kl or 0.0 for row in rows)
    columns = {"": "left", "bytes": "right", " ": "left", "bits/weight": "right", "perplexity": "right"}
    columns |= {"KL to dense": "right", "  ": "left", "same top-1": "right"}
    cells: list[list[str | Text]] = [
        [
            "dense" if row is evaluation.reference else row.name,
            words.in_bytes(row.bytes_on_disk),
            Text(bar((row.bytes_on_disk or 0) / max(most_bytes, 1), 16), style="cyan"),
            words.figure(row.bits_per_weight),
            words.figure(row.perplexity),
            words.divergence(row.kl),
            Text(bar(row.kl / most_kl, 16) if row.kl else "", style="yellow"),
            words.percent(row.top1),
        ]
        for row in rows
    ]
    table(None, columns, cells, console)
    console.print(
        f"Measured at {evaluation.context}; KL in nats, over {evaluation.tokens} tokens.", markup=False
    )
