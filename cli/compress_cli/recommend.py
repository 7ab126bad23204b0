"""`compress recommend`: which recipe to take for a size and a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from compress.errors import UserError
from compress.system import units as words
from compress_cli import library, options
from compress_cli.display import print_json, screen, table

if TYPE_CHECKING:
    from compress.pipeline.recommend import Candidate


def recommend(
    model: options.Model,
    fit: Annotated[
        str | None,
        typer.Option(
            help="What has to hold it: a size of the weight files (`4GB`) or a machine (`8GB-ram`, `24GB-vram`).",
            metavar="SIZE",
            show_default="no limit",
        ),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            help="What has to read it: `transformers`, `vllm` or `llama.cpp`.",
            metavar="NAME",
            show_default="any",
        ),
    ] = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = False,
) -> None:
    """Say which shipped recipe to take, and why: the nearest to the original that fits.

    Reads only headers and configuration. The bytes are exact; the memory of a run is an estimate, and so is its time on this
    machine when it does nothing else, from two short products. Quality is not measured. With --runtime only recipes are named
    whose output that program was measured to read, on small models (docs/servers.md).
    A search weight by weight (`compress run MODEL --budget 4GB`) gets nearer at the same size and takes longer.

    Examples:

    `compress recommend ./my-model --fit 4GB --runtime vllm`

    `compress recommend ./my-model --fit 8GB-ram --runtime llama.cpp --json`
    """
    amount = None if fit is None else library.parse_place(fit)
    found = library.recommend(model, amount=amount, runtime=runtime, trust_remote_code=trust_remote_code)
    if json:
        print_json(found)
    else:
        columns = {"recipe": "left", "bytes": "right", "memory of the run": "right", "time": "right"}
        columns |= {"reads": "left"}
        table(
            None,
            columns | {"read by": "left", "": "fold"},
            [_row(one, one == found.chosen) for one in found.candidates],
        )
        if found.chosen is not None:
            screen().print(f"{found.why}.", markup=False, soft_wrap=True)
    if found.chosen is None:
        raise UserError(f"{found.why}.")
    if not json:
        screen().print(
            f"\ncompress run {model} -r {found.chosen.recipe} -o OUT", markup=False, soft_wrap=True
        )


def _row(one: Candidate, chosen: bool) -> list[str]:
    sizes = [words.NOTHING] * 3
    if one.nbytes:
        sizes = [words.in_bytes(one.nbytes), words.in_bytes(one.memory), words.roughly(one.seconds)]
    return [
        one.recipe,
        *sizes,
        one.needs,
        ", ".join([*one.servers, *(f"{server} (not measured)" for server in one.unmeasured)])
        or words.NOTHING,
        "this one" if chosen else one.objection or "",
    ]
