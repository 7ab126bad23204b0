"""The commands, wired; each stands in a file of its own."""

from __future__ import annotations

from typing import Annotated

import typer

import compress as api
from compress_cli import (
    bench,
    demo,
    evaluate,
    export,
    generate,
    heal,
    inspect,
    plan,
    recipes,
    report,
    run,
    verify,
)
from compress_cli.failures import Commands

app = typer.Typer(
    name="compress",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(api.__version__)
        raise typer.Exit


@app.callback()
def compress(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """One Hugging Face checkpoint in, one smaller checkpoint out, and proof that it is what it says.

    Start with `compress demo`, or go straight ahead:

    `compress run ./my-model -r w4-gptq -o ./my-model-w4`
    """


app.command("run")(run.run)
app.command("plan")(plan.plan)
app.command("verify")(verify.verify)
app.command("eval")(evaluate.evaluate)
app.command("heal")(heal.heal)
app.command("export")(export.export)
app.command("generate")(generate.generate_text)
app.command("bench")(bench.bench)
app.command("inspect")(inspect.inspect)
app.command("recipes")(recipes.recipes)
app.command("report")(report.report)
app.command("demo")(demo.demo)
