"""`compress run`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import compress as api
from compress_cli import budgets, library, options
from compress_cli.display import print_json, screen
from compress_cli.failures import STOPPED_RUN, explained
from compress_cli.opening import FreshProcess, open_as_users_do
from compress_cli.progress import listener
from compress_cli.ranks import leading

Out = Annotated[
    Path, typer.Option("--out", "-o", help="The folder to write; must not exist yet.", show_default=False)
]
TrueSequential = Annotated[
    bool | None,
    typer.Option(
        "--true-sequential/--no-true-sequential",
        help="Solve a block's weights in the order in which data meets them, or all at once.",
        show_default=options.RECIPES_OWN,
    ),
]
PushToHub = Annotated[
    str | None,
    typer.Option(
        "--push-to-hub",
        help="Upload the finished checkpoint to this repository of the hub, as `compress push OUT NAME` does.",
        metavar="NAME",
        show_default=False,
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
    budget: budgets.Budget = None,
    bits: budgets.Bits = None,
    ratio: budgets.Ratio = None,
    fit: budgets.Fit = None,
    time: budgets.Time = None,
    runtime: budgets.RuntimeName = None,
    trials: budgets.Trials = None,
    save_recipe: budgets.SaveRecipe = None,
    data: options.CalibrationText = None,
    samples: options.Samples = None,
    length: options.Length = None,
    bos: options.Bos = None,
    seed: options.Seed = 0,
    set_: options.Settings = None,
    true_sequential: TrueSequential = None,
    device: options.Device = "auto",
    dtype: options.Precision = options.Dtype.auto,
    format: options.OutputFormat = None,
    overwrite: Overwrite = False,
    restart: Restart = False,
    trust_remote_code: options.TrustRemoteCode = False,
    strict: options.Strict = False,
    memory: options.Memory = None,
    device_memory: options.DeviceMemory = None,
    cache: options.Cache = None,
    fresh_process: FreshProcess = None,
    push_to_hub: PushToHub = None,
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

    `compress run ./my-model --budget 4GB -o ./my-model-4gb` (the best that fits; no recipe is named)
    """
    asked = budgets.Asked(budget, bits, ratio, fit, time, runtime, trials, save_recipe)
    if push_to_hub is not None:
        library.check_upload(push_to_hub)
    if asked.given:
        asked.refuse_beside(
            recipe=recipe, scheme=scheme, set=set_, format=format, bos=bos, strict=strict or None,
            true_sequential=true_sequential, memory=memory,
            device_memory=device_memory, cache=cache,
        )  # fmt: skip
        with explained(STOPPED_RUN), leading(device) as leads:
            if not leads:
                return
            found = api.compress_to_budget(
                model,
                out,
                **asked.arguments,
                data=data,
                samples=samples,
                length=length,
                seed=seed,
                device=device,
                dtype=dtype.value,
                overwrite=overwrite,
                restart=restart,
                trust_remote_code=trust_remote_code,
                progress=listener(quiet=quiet),
            )
        if isinstance(found, library.Copied):
            _say_copied(found, json=json, quiet=quiet, pushed=push_to_hub is not None)
        else:
            _show(found, model, fresh_process, trust_remote_code=trust_remote_code, json=json, quiet=quiet)
            _push(found.out, push_to_hub, quiet=quiet or json)
        return
    asked.refuse_alone()
    settings = options.settings(set_)
    if true_sequential is not None:
        settings["true_sequential"] = true_sequential
    chosen = options.recipe_of(recipe, scheme, settings)
    with explained(STOPPED_RUN), leading(device) as leads:
        if not leads:
            return
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
            memory=memory,
            device_memory=device_memory,
            gradients=cache,
            progress=listener(quiet=quiet),
        )
    _show(result, model, fresh_process, trust_remote_code=trust_remote_code, json=json, quiet=quiet)
    _push(result.out, push_to_hub, quiet=quiet or json)


def _push(out: Path, name: str | None, *, quiet: bool) -> None:
    """Upload the finished checkpoint, if that was asked for."""
    if name is None:
        return
    pushed = api.push_to_hub(out, name)
    if not quiet:
        screen().print(f"It is at {pushed.url}.", markup=False, soft_wrap=True)


def _say_copied(copied: library.Copied, *, json: bool, quiet: bool, pushed: bool) -> None:
    """Say that a model fits its budget as it is, and that a copy is not uploaded."""
    if json:
        print_json(copied)
    elif not quiet:
        left = " It was not uploaded: nothing in it is new." if pushed else ""
        screen().print(f"{copied.note}{left}", markup=False, soft_wrap=True)


def _show(
    result: library.Result,
    model: str,
    fresh_process: bool | None,
    *,
    trust_remote_code: bool,
    json: bool,
    quiet: bool,
) -> None:
    """Open the output as users do, and print what was done."""
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
