"""`compress inspect`: what is in a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compress.errors import UserError
from compress.system import units as words
from compress_cli import library, options
from compress_cli.display import print_json, screen, table

if TYPE_CHECKING:
    from compress.diagnose import DiagnosisSettings
    from compress_cli.contents import Stored


def inspect(
    folder: Annotated[
        str,
        typer.Argument(
            help="Any checkpoint, dense or compressed: a folder or a GGUF file.",
            metavar="DIR",
            callback=options.checkpoints,
            show_default=False,
        ),
    ],
    largest: Annotated[int, typer.Option(min=0, help="How many of the largest weights to list.")] = 10,
    diagnose: Annotated[
        bool,
        typer.Option(
            "--diagnose", help="Read the weights and say what they are like and what follows from it."
        ),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            help="A text for --diagnose: its inputs are looked at, too.",
            show_default=False,
            callback=options.readable,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="The dense model of a compressed one, for --diagnose: where they part.",
            show_default=False,
            callback=options.checkpoints,
        ),
    ] = None,
    other_size: Annotated[
        str | None,
        typer.Option(
            help="A model of another size, for --diagnose: whether methods rank alike in both.",
            callback=options.checkpoints,
            show_default=False,
        ),
    ] = None,
    entries: Annotated[
        str | None,
        typer.Option(
            help="Entries of the diagnosis, with commas; all that can be answered by default.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Windows of the text.")] = 8,
    length: Annotated[int, typer.Option(min=2, help="Tokens in a window.")] = 512,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = False,
) -> None:
    """Show what a checkpoint holds: weights by kind and form, bits for each weight, and the largest ones.

    Reads only headers, so it takes seconds on a model of any size; with --diagnose, the weights block by block.

    Examples:

    `compress inspect ./my-model-w4`

    `compress inspect ./my-model --largest 30`

    `compress inspect ./my-model --diagnose --data text.txt`

    `compress inspect ./my-model-w4 --diagnose --data text.txt --against ./my-model --entries drift`
    """
    if diagnose:
        settings = library.DiagnosisSettings(
            samples=samples, length=length, trust_remote_code=trust_remote_code
        )
        names = [name.strip() for name in entries.split(",")] if entries else None
        _diagnose(folder, data, (against, other_size), names, settings, json)
        return
    if any(one is not None for one in (data, against, other_size, entries)):
        raise UserError("--data, --against, --other-size and --entries belong to --diagnose: add it.")
    path = options.local(folder)
    file = library.foreign_gguf(path)
    facts, stored = _of_gguf(file) if file else _of_checkpoint(path, trust_remote_code)
    biggest = sorted(stored, key=lambda one: -one.nbytes)[:largest]
    if json:
        print_json({**facts, "totals": library.contents.totals(stored), "largest": biggest})
    else:
        _show(facts, stored, biggest)


def _diagnose(
    folder: str,
    data: str | None,
    others: tuple[str | None, str | None],
    entries: list[str] | None,
    settings: DiagnosisSettings,
    json: bool,
) -> None:
    found = library.diagnose(
        options.local(folder),
        data=data,
        against=None if others[0] is None else options.local(others[0]),
        other_size=None if others[1] is None else options.local(others[1]),
        entries=entries,
        settings=settings,
    )
    if json:
        print_json(found.to_json())
        return
    for finding in found.findings:
        first, *rest = finding.columns
        heads = {first: "left"} | dict.fromkeys(rest, "right")
        table(finding.title, heads, [[_cell(cell) for cell in row] for row in finding.rows])
        screen().print(finding.advice, markup=False)
        screen().print()


def _cell(cell: str | float | None) -> str:
    return words.significant(cell) if isinstance(cell, float) else "" if cell is None else str(cell)


def _of_gguf(file: Path) -> tuple[dict[str, Any], list[Stored]]:
    architecture, tensors = library.list_gguf(file)
    stored = library.contents.gguf_contents(tensors)
    return _facts(str(file), architecture or None, "gguf", 1, len(tensors), stored), stored


def _of_checkpoint(path: str, trust_remote_code: bool) -> tuple[dict[str, Any], list[Stored]]:
    source = library.open_source(path, trust_remote_code=trust_remote_code)
    stored = library.contents.contents(source)
    quantization = library.quantization_of(source)
    method = None if quantization is None else library.method_of(quantization)
    architecture = next(iter(source.config.get("architectures") or []), None)
    return _facts(source.name, architecture, method, len(source.files), len(source.headers), stored), stored


def _facts(
    name: str, architecture: str | None, method: str | None, files: int, tensors: int, stored: list[Stored]
) -> dict[str, Any]:
    parameters, nbytes = sum(one.parameters for one in stored), sum(one.nbytes for one in stored)
    return {
        "name": name,
        "architecture": architecture,
        "quant_method": method,
        "files": files,
        "tensors": tensors,
        "parameters": parameters,
        "bytes": nbytes,
        "bits_per_weight": _bits(nbytes, parameters),
    }


def _show(facts: dict[str, Any], stored: list[Stored], biggest: list[Stored]) -> None:
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
        for one in library.contents.totals(stored)
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
