"""What `run` and `verify` do last: they open the output as its users will, in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compress_cli import library

FreshProcess = Annotated[
    bool | None,
    typer.Option(
        "--fresh-process/--no-fresh-process",
        help="Open the output with transformers in a process of its own (memory for the whole model, twice) and compare.",
        show_default="where transformers reads the format and the dense model has at most 4 GiB",
    ),
]


def open_as_users_do(out: Path, model: str, wanted: bool | None, *, trust_remote_code: bool) -> str | None:
    """Open ``out`` in a fresh process and compare its outputs.

    Args:
        out: the compressed checkpoint.
        model: what it was made from.
        wanted: ``None`` leaves it out where there is a reason against it.
        trust_remote_code: run Python code that comes with the checkpoint.

    Returns:
        What was done, or why it was not; ``None`` where it was not wanted.

    Raises:
        UserError: transformers does not open it, or computes something else.
    """
    if wanted is False:
        return None
    source = library.open_dense(model, trust_remote_code=trust_remote_code)
    reason = None if wanted else library.reason_against(out, source)
    if reason is not None:
        return f"Not opened with transformers in a process of its own: {reason}."
    library.check_opens(out, source)
    return "Transformers opens it in a process of its own and computes the same."
