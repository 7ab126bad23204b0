"""`compress export`: a finished checkpoint in another form."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import compress as api
from compress.system import units as words
from compress_cli import options
from compress_cli.display import print_json, screen


class ExportFormat(StrEnum):
    """The forms that a finished checkpoint can be written anew in."""

    gguf = "gguf"
    gptq = "gptq"
    awq = "awq"
    mlx = "mlx"
    fp8 = "fp8"
    modelopt = "modelopt"


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A folder that `compress run` wrote, or any checkpoint, dense or quantized.",
            metavar="OUT",
            callback=options.checkpoints,
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The folder to write; must not exist yet.", show_default=False)
    ],
    format: Annotated[
        ExportFormat,
        typer.Option(
            "--format",
            help="`gguf` is one file that llama.cpp opens, `mlx` a folder for mlx_lm; GPTQModel, transformers and vLLM read "
            "`gptq` and `awq`; `fp8` and `modelopt` take weights in small floats.",
        ),
    ] = ExportFormat.gguf,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the folder once the new one is verified.")
    ] = False,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = False,
) -> None:
    """Write a finished checkpoint anew in another form, without solving anything again.

    Weights keep their codes. What GGUF has no type for is stored dense there; the other forms refuse what they cannot hold.

    Examples:

    `compress export ./my-model-w4 --format gguf -o ./my-model-w4-gguf`

    `compress export ./my-model-w4 --format awq -o ./my-model-awq`

    `compress export ./my-model --format gguf -o ./my-model-gguf`
    """
    made = api.export(
        options.local(checkpoint),
        out,
        format=format.value,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
    )
    if json:
        print_json(made)
        return
    for note in made.notes:
        screen().print(note, markup=False, soft_wrap=True)
    screen().print(
        f"{made.out} is written and read back: {words.in_bytes(made.nbytes)}, {made.carried} weights with their codes as "
        f"they were, {made.dense} tensors dense.",
        markup=False,
        soft_wrap=True,
    )
