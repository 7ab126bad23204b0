"""The commands, wired; each stands in a file of its own, which is imported when the command is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import typer

import compress as api
from compress_cli.deferred import MARKUP, DeferredGroup


class Commands(DeferredGroup):
    """The commands of `compress`. To add one: a line here, with the first sentence of its docstring."""

    homes: ClassVar[Mapping[str, tuple[str, str]]] = {
        "run": (
            "compress_cli.run:run",
            "Compress a checkpoint, block by block, and verify what was written.",
        ),
        "plan": (
            "compress_cli.plan:plan",
            "Say what a run would compress and leave alone, how many bytes it would write and how much memory it needs.",
        ),
        "sweep": (
            "compress_cli.sweep:sweep",
            "Compress a checkpoint to several budgets with one search, and draw what each costs.",
        ),
        "verify": (
            "compress_cli.verify:verify",
            "Check a compressed checkpoint against its source, and stop at the first thing that is wrong.",
        ),
        "eval": (
            "compress_cli.evaluate:evaluate",
            "Measure checkpoints side by side: perplexity, divergence from the dense model, agreement, bytes, speed.",
        ),
        "heal": (
            "compress_cli.heal:heal",
            "Train a compressed checkpoint against the dense model; its layout and its bytes stay what they are.",
        ),
        "train": (
            "compress_cli.train:train",
            "Train a model from scratch on a text and write it as a checkpoint.",
        ),
        "export": (
            "compress_cli.export:export",
            "Write a finished checkpoint anew in another form, without solving anything again.",
        ),
        "pack": (
            "compress_cli.pack:pack",
            "Entropy-code a checkpoint for cold storage: `compress unpack` gives the same bytes again.",
        ),
        "unpack": (
            "compress_cli.pack:unpack",
            "Unpack what `compress pack` made, byte for byte; every file is held against its hash.",
        ),
        "generate": (
            "compress_cli.generate:generate_text",
            "Continue a prompt, then say how fast that was and what memory it took.",
        ),
        "serve": (
            "compress_cli.serve:serve",
            "Serve a checkpoint with OpenAI's API and a page to chat in, for trying it on this machine.",
        ),
        "bench": (
            "compress_cli.bench:bench",
            "Measure tokens per second and memory, each checkpoint in a process of its own.",
        ),
        "push": (
            "compress_cli.push:push",
            "Upload a finished checkpoint with its model card to the Hugging Face hub.",
        ),
        "inspect": (
            "compress_cli.inspect:inspect",
            "Show what a checkpoint holds: weights by kind and form, bits for each weight, and the largest ones.",
        ),
        "recipes": (
            "compress_cli.recipes:recipes",
            "List the shipped recipes and the schemes that they write, or print one as the start of your own.",
        ),
        "recommend": (
            "compress_cli.recommend:recommend",
            "Say which shipped recipe to take, and why: the nearest to the original that fits.",
        ),
        "report": (
            "compress_cli.report:report",
            "Print what a run did, and write it as one HTML page that works offline; of several runs, a comparison.",
        ),
        "demo": (
            "compress_cli.demo:demo",
            "Compress the model that ships with Compress in several ways and show what each costs.",
        ),
    }


app = typer.Typer(
    name="compress",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=MARKUP,
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
