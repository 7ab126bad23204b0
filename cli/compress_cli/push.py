"""`compress push`: an output goes to the Hugging Face hub."""

from __future__ import annotations

from typing import Annotated

import typer

import compress as api
from compress_cli import options
from compress_cli.display import print_json, screen


def push(
    out: options.Checkpoint,
    name: Annotated[
        str,
        typer.Argument(help="The repository on the hub: `user/model`.", metavar="NAME", show_default=False),
    ],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="The branch.", metavar="BRANCH", show_default="main")
    ] = None,
    json: options.Json = False,
) -> None:
    """Upload a finished checkpoint with its model card to the Hugging Face hub.

    Log in first (`hf auth login`, or set `HF_TOKEN`). The files are checked against their hashes before anything is sent.
    Stopped half-way, the same command goes on: files that are on the hub already are not sent again.

    Example:

    `compress push ./my-model-w4 user/my-model-w4`
    """
    pushed = api.push_to_hub(out, name, private=private, revision=revision)
    if json:
        print_json(pushed)
        return
    screen().print(
        f"{out} is at {pushed.url}: {pushed.sent} files sent, {pushed.present} were there already.",
        markup=False,
        soft_wrap=True,
    )
