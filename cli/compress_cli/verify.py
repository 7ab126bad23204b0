"""`compress verify`: is a compressed checkpoint what it says it is?"""

from __future__ import annotations

from typing import Annotated

import typer

import compress as api
from compress_cli import options
from compress_cli.display import print_json, screen
from compress_cli.opening import FreshProcess, open_as_users_do


def verify(
    out: options.Checkpoint,
    source: Annotated[
        str,
        typer.Option(
            help="The dense checkpoint it was made from: a folder, a hub name or `embedded`.",
            metavar="MODEL",
            callback=options.checkpoints,
            show_default=False,
        ),
    ],
    trust_remote_code: options.TrustRemoteCode = False,
    fresh_process: FreshProcess = None,
    json: options.Json = False,
) -> None:
    """Check a compressed checkpoint against its source, and stop at the first thing that is wrong.

    Checked are the hash of every file, the bytes of every tensor that was to stay as it was, that nothing is lost,
    renamed or left unpacked, and that the bytes are those that were planned. The exit status is 0 only if all holds.

    Example:

    `compress verify ./my-model-w4 --source ./my-model`
    """
    model = options.local(source)
    found = api.verify(out, model, trust_remote_code=trust_remote_code)
    opened = open_as_users_do(out, model, fresh_process, trust_remote_code=trust_remote_code)
    if json:
        print_json(found)
    else:
        screen().print(
            f"{out} is what it says: {found.packed} weights packed, {found.passed_through} tensors unchanged, "
            f"{found.nbytes} bytes as planned, {found.files} other files as in the source."
            + (f" {opened}" if opened else ""),
            markup=False,
            soft_wrap=True,
        )
