"""`compress verify`: is a compressed checkpoint what it says it is?"""

from __future__ import annotations

from typing import Annotated

import typer

import compress as api
from compress_cli import options
from compress_cli.display import print_json, screen


def verify(
    out: options.Checkpoint,
    source: Annotated[
        str,
        typer.Option(
            help="The dense checkpoint it was made from: a folder, a hub name or `embedded`.",
            metavar="MODEL",
            show_default=False,
        ),
    ],
    trust_remote_code: options.TrustRemoteCode = False,
    fresh_process: Annotated[
        bool,
        typer.Option(
            "--fresh-process",
            help="Also open it with transformers in a process of its own (memory for the whole model, twice).",
        ),
    ] = False,
    json: options.Json = False,
) -> None:
    """Check a compressed checkpoint against its source, and stop at the first thing that is wrong.

    Checked are the hash of every file, the bytes of every tensor that was to stay as it was, that nothing is lost,
    renamed or left unpacked, and that the bytes are those that were planned. The exit status is 0 only if all holds.

    Example:

    `compress verify ./my-model-w4 --source ./my-model`
    """
    found = api.verify(
        out, options.local(source), trust_remote_code=trust_remote_code, fresh_process=fresh_process
    )
    if json:
        print_json(found)
    else:
        screen().print(
            f"{out} is what it says: {found.packed} weights packed, {found.passed_through} tensors unchanged, "
            f"{found.nbytes} bytes as planned, {found.files} other files as in the source.",
            markup=False,
            soft_wrap=True,
        )
