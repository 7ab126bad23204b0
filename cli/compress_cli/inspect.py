"""`compress inspect`: what is in a checkpoint."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from compress.checkpoint.source import Source, open_source
from compress.system import units as words
from compress_cli import options
from compress_cli.contents import Stored, contents, totals
from compress_cli.display import print_json, screen, table


def inspect(
    folder: Annotated[
        str, typer.Argument(help="Any checkpoint, dense or compressed.", metavar="DIR", show_default=False)
    ],
    largest: Annotated[int, typer.Option(min=0, help="How many of the largest weights to list.")] = 10,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = False,
) -> None:
    """Show what a checkpoint holds: weights by kind and form, bits for each weight, and the largest ones.

    Reads only headers, so it takes seconds on a model of any size.

    Examples:

    `compress inspect ./my-model-w4`

    `compress inspect ./my-model --largest 30`
    """
    source = open_source(options.local(folder), trust_remote_code=trust_remote_code)
    stored = contents(source)
    biggest = sorted(stored, key=lambda one: -one.nbytes)[:largest]
    if json:
        print_json(_as_json(source, stored, biggest))
    else:
        _show(source, stored, biggest)


def _as_json(source: Source, stored: list[Stored], biggest: list[Stored]) -> dict[str, Any]:
    method = (source.config.get("quantization_config") or {}).get("quant_method")
    parameters, nbytes = sum(one.parameters for one in stored), sum(one.nbytes for one in stored)
    return {
        "name": source.name,
        "architecture": next(iter(source.config.get("architectures") or []), None),
        "quant_method": method,
        "files": len(source.files),
        "tensors": len(source.headers),
        "parameters": parameters,
        "bytes": nbytes,
        "bits_per_weight": _bits(nbytes, parameters),
        "totals": totals(stored),
        "largest": biggest,
    }


def _show(source: Source, stored: list[Stored], biggest: list[Stored]) -> None:
    facts = _as_json(source, stored, biggest)
    screen().print(
        f"{facts['architecture'] or 'A model'}: {words.in_parameters(facts['parameters'])} parameters in "
        f"{words.in_bytes(facts['bytes'])}, {words.figure(facts['bits_per_weight'])} bits each; "
        f"{facts['tensors']} tensors in {facts['files']} file(s), "
        + (f"packed as {facts['quant_method']}." if facts["quant_method"] else "not packed."),
        markup=False,
    )
    columns = {"kind": "left", "stored as": "left", "count": "right"}
    columns |= {"parameters": "right", "bytes": "right", "bits/weight": "right"}
    rows = [
        [
            one.kind,
            one.form,
            str(one.count),
            words.in_parameters(one.parameters),
            words.in_bytes(one.nbytes),
            words.figure(_bits(one.nbytes, one.parameters)),
        ]
        for one in totals(stored)
    ]
    table("By kind", columns, rows)
    if biggest:
        columns = {"name": "fold", "kind": "left", "stored as": "left", "shape": "left", "bytes": "right"}
        cells = [
            [one.name, one.kind, one.form, " × ".join(map(str, one.shape)), words.in_bytes(one.nbytes)]
            for one in biggest
        ]
        table("The largest", columns, cells)


def _bits(nbytes: int, parameters: int) -> float | None:
    return 8 * nbytes / parameters if parameters else None
