"""`compress recipes`: what ships, and when to use which."""

from __future__ import annotations

from typing import Annotated

import typer

from compress.errors import UserError
from compress.recipe import Recipe, shipped
from compress.registry import did_you_mean
from compress.report import words
from compress_cli import options
from compress_cli.display import print_json, table


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Print the YAML of this one.",
            metavar="[NAME]",
            show_default=False,
            autocompletion=options.recipe_names,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """List the shipped recipes, or print one as the start of your own.

    Examples:

    `compress recipes`

    `compress recipes w4-gptq > mine.yaml`, edit it, then `compress run MODEL -r mine.yaml -o OUT`
    """
    if name is None:
        _list(json=json)
        return
    files = shipped()
    if name not in files:
        raise UserError(f"There is no recipe called '{name}'{did_you_mean(name, files)}.")
    if json:
        print_json(Recipe.load(name).model_dump(mode="json"))
    else:
        typer.echo(files[name].read_text(encoding="utf-8"), nl=False)


def _list(*, json: bool) -> None:
    rows = [_row(Recipe.load(name)) for name in shipped()]
    if json:
        print_json(rows)
        return
    columns = {"recipe": "left", "bits": "right", "when to use it": "fold"}
    table(None, columns, [[row["name"], row["bits"], row["when"]] for row in rows])


def _row(recipe: Recipe) -> dict[str, str]:
    bits = sorted({step.quantize.bits for step in recipe.steps if step.quantize is not None})
    return {"name": recipe.name, "when": recipe.when, "bits": ", ".join(map(str, bits)) or words.NOTHING}
