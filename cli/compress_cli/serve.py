"""`compress serve`: a checkpoint behind OpenAI's API, on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compress.assets import EMBEDDED
from compress_cli import library, options
from compress_cli.status import results_follow

if TYPE_CHECKING:
    from compress.serve import Engine


def serve(
    out: options.AnyCheckpoint,
    host: Annotated[
        str, typer.Option(help="The address to listen at; any but this machine's lets others in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
    name: Annotated[
        str | None,
        typer.Option(help="What clients call the model.", show_default="the folder's name"),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of an answer whose request names no number.")
    ] = 512,
    queue: Annotated[
        int,
        typer.Option(min=0, help="Requests that may wait while another is answered; more get status 429."),
    ] = 8,
    max_body: Annotated[int, typer.Option(min=1024, help="Bytes of a request at most.")] = 1 << 20,
    device: options.Device = "auto",
    dtype: options.Precision = options.Dtype.auto,
    threads: options.Threads = None,
    trust_remote_code: options.TrustRemoteCode = False,
    check: options.Check = False,
    quiet: options.Quiet = False,
) -> None:
    """Serve a checkpoint with OpenAI's API and a page to chat in, for trying it on this machine.

    One answer is made at a time, with the same fast decoding as `compress generate`. For many users, take one that batches.

    Examples:

    `compress serve ./my-model-w4`

    `compress serve ./my-model-w4 --port 8080 --name my-model --threads 4`
    """
    folder = options.local(out)

    def open_engine() -> Engine:
        return library.open_engine(
            folder,
            name or _name_of(out),
            device=device,
            dtype=dtype.value,
            threads=threads,
            trust_remote_code=trust_remote_code,
            check=check,
        )

    def ready(url: str) -> None:
        results_follow()
        if not quiet:
            typer.echo(f"{url} has a page to chat in, {url}/v1 the API. Ctrl-C ends it.")
            sys.stdout.flush()

    settings = library.ServerSettings(host, port, queue, max_body, max_tokens)
    library.serve(open_engine, settings, ready)


def _name_of(out: str) -> str:
    """What clients call a model by default: a folder's name; a hub's name as it is."""
    return Path(out).resolve().name if out != EMBEDDED and Path(out).exists() else out
