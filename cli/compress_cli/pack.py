"""`compress pack` and `compress unpack`: a finished checkpoint in cold storage, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import compress as api
from compress.system import units as words
from compress_cli import options
from compress_cli.display import print_json, screen

Target = Annotated[
    Path, typer.Option("--out", "-o", help="The folder to write; must not exist yet.", show_default=False)
]


def pack(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="The folder of a checkpoint.", metavar="OUT", show_default=False, callback=options.folders
        ),
    ],
    out: Target,
    json: options.Json = False,
) -> None:
    """Entropy-code a checkpoint for cold storage: `compress unpack` gives the same bytes again.

    Codes on a grid hold fewer bits than they are stored in, and so do the exponents of bf16. No program loads the packed form.

    Example:

    `compress pack ./my-model-w4 -o ./my-model-w4-cold`
    """
    made = api.pack(checkpoint, out)
    if json:
        print_json(made)
        return
    screen().print(
        f"{made.out} is written: {words.in_bytes(made.after)} in place of {words.in_bytes(made.before)} of weight files "
        f"({words.percent(made.after / max(made.before, 1))}), {words.percent(made.above_bound, 2)} above the entropy of its "
        "symbols.",
        markup=False,
        soft_wrap=True,
    )


def unpack(
    packed: Annotated[
        Path,
        typer.Argument(
            help="A folder that `compress pack` wrote.",
            metavar="DIR",
            show_default=False,
            callback=options.folders,
        ),
    ],
    out: Target,
) -> None:
    """Unpack what `compress pack` made, byte for byte; every file is held against its hash.

    Example:

    `compress unpack ./my-model-w4-cold -o ./my-model-w4`
    """
    folder = api.unpack(packed, out)
    screen().print(f"{folder} is written, every file as it was packed.", markup=False, soft_wrap=True)
