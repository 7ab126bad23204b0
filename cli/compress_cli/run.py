"""`compress run`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import compress as api
from compress_cli import library, options
from compress_cli.display import print_json, screen
from compress_cli.failures import STOPPED_RUN, explained
from compress_cli.opening import FreshProcess, open_as_users_do
from compress_cli.progress import listener

Out = Annotated[
    Path, typer.Option("--out", "-o", help="The folder to write; must not exist yet.", show_default=False)
]
Data = Annotated[
    str | None,
    typer.Option(
        help="Calibration text: a text, .jsonl or .json file, a dataset on the hub, or `embedded`.",
        metavar="TEXT",
        show_default=options.RECIPES_OWN,
    ),
]
Seed = Annotated[
    int, typer.Option(min=0, max=(1 << 63) - 1, help="Decides which windows of the text are drawn.")
]
TrueSequential = Annotated[
    bool | None,
    typer.Option(
        "--true-sequential/--no-true-sequential",
        help="Solve a block's weights in the order in which data meets them, or all at once.",
        show_default=options.RECIPES_OWN,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT once the new one is verified.")]

Restart = Annotated[
    bool, typer.Option("--restart", help="Discard an unfinished run into OUT that had other options.")
]


def run(
    model: options.Model,
    out: Out,
    recipe: options.RecipeName = None,
    scheme: options.SchemeName = None,
    data: Data = None,
    samples: options.Samples = None,
    length: options.Length = None,
    bos: options.Bos = None,
    seed: Seed = 0,
    set_: options.Settings = None,
    true_sequential: TrueSequential = None,
    device: options.Device = "auto",
    dtype: options.Precision = options.Dtype.auto,
    format: options.OutputFormat = None,
    overwrite: Overwrite = False,
    restart: Restart = False,
    trust_remote_code: options.TrustRemoteCode = False,
    strict: options.Strict = False,
    fresh_process: FreshProcess = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compress a checkpoint, block by block, and verify what was written.

    Stopped half-way, the same command goes on where it was. The folder holds the checkpoint, `compress.json` (every
    figure) and `report.html` (for people).

    Examples:

    `compress run ./my-model -r w4-gptq -o ./my-model-w4`

    `compress run ./my-model --scheme Q4_K_M -o ./my-model-gguf`

    `compress run ./my-model -r w3-gptq -o ./my-model-w3 --data notes.txt --samples 256 --set quantize.group_size=64`
    """
    settings = options.settings(set_)
    if true_sequential is not None:
        settings["true_sequential"] = true_sequential
    chosen = options.recipe_of(recipe, scheme, settings)
    with explained(STOPPED_RUN):
        result = api.compress(
            model,
            chosen,
            out,
            data=data,
            samples=samples,
            length=length,
            bos=bos,
            seed=seed,
            device=device,
            dtype=dtype.value,
            format=format.value if format is not None else None,
            overwrite=overwrite,
            restart=restart,
            trust_remote_code=trust_remote_code,
            settings=settings,
            strict=strict,
            progress=listener(quiet=quiet),
        )
    opened = open_as_users_do(
        result.out, options.local(model), fresh_process, trust_remote_code=trust_remote_code
    )
    if json:
        print_json(result)
    elif not quiet:
        library.print_report(result.report)
        screen().print(
            f"\n{result.out} is written and verified." + (f" {opened}" if opened else ""),
            markup=False,
            soft_wrap=True,
        )
