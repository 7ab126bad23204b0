"""`compress sweep`: several budgets of one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import compress as api
from compress.errors import UserError
from compress.system import units as words
from compress_cli import budgets, options
from compress_cli.display import print_json, screen, table
from compress_cli.failures import STOPPED_RUN, explained
from compress_cli.progress import listener
from compress_cli.run import Restart

Listed = Annotated[
    str | None,
    typer.Option(
        "--budgets",
        help="Sizes of the weight files, with commas between them.",
        metavar="SIZES",
        show_default=False,
    ),
]
ListedBits = Annotated[
    str | None,
    typer.Option("--bits", help="The same, as bits a parameter.", metavar="NUMBERS", show_default=False),
]
ListedRatios = Annotated[
    str | None,
    typer.Option(
        "--ratios", help="The same, as shares of the model's bytes.", metavar="NUMBERS", show_default=False
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        "--out", "-o", help="The folder to write; one folder in it for each budget.", show_default=False
    ),
]


def sweep(
    model: options.Model,
    out: Out,
    sizes: Listed = None,
    bits: ListedBits = None,
    ratios: ListedRatios = None,
    runtime: budgets.RuntimeName = None,
    trials: budgets.Trials = None,
    data: options.CalibrationText = None,
    samples: options.Samples = None,
    length: options.Length = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Precision = options.Dtype.auto,
    restart: Restart = False,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compress a checkpoint to several budgets with one search, and draw what each costs.

    Stopped half-way, the same command goes on where it was; budgets that are finished are left as they are. `sweep.html`
    shows the divergence over the bytes.

    Examples:

    `compress sweep ./my-model --budgets 2GB,3GB,4GB -o ./my-models`

    `compress sweep ./my-model --bits 2.5,3.25,4.25 --runtime native -o ./my-models`
    """
    given = {"runtime": runtime, "trials": trials}
    with explained(STOPPED_RUN):
        result = api.sweep(
            model,
            out,
            budgets=[one.strip() for one in (sizes or "").split(",") if one.strip()],
            bits=_numbers(bits, "--bits"),
            ratios=_numbers(ratios, "--ratios"),
            **{key: value for key, value in given.items() if value is not None},  # type: ignore[arg-type]
            data=data,
            samples=samples,
            length=length,
            seed=seed,
            device=device,
            dtype=dtype.value,
            restart=restart,
            trust_remote_code=trust_remote_code,
            progress=listener(quiet=quiet),
        )
    if json:
        print_json(result)
    elif not quiet:
        columns = {"budget": "left", "weight files": "right", "KL": "right", "KL predicted": "right"}
        rows = [
            [
                one.name,
                words.in_bytes(one.nbytes),
                words.divergence(one.kl),
                words.divergence(one.predicted_kl),
            ]
            for one in result.points
        ]
        table(f"{model} within budgets", columns, rows)
        screen().print(f"{result.out} is written and verified.", markup=False, soft_wrap=True)


def _numbers(text: str | None, option: str) -> list[float]:
    try:
        return [float(one) for one in (text or "").split(",") if one.strip()]
    except ValueError as error:
        raise UserError(
            f"{option} {text!r}: write numbers with commas between them, like 2.5,3,4."
        ) from error
