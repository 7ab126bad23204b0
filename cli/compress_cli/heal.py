"""`compress heal`: train what a compressed checkpoint may change without a change of its layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import compress as api
from compress.errors import UserError
from compress.recipe.recipe import Recipe
from compress.system import units as words
from compress_cli import library, options
from compress_cli.display import print_json, screen
from compress_cli.failures import STOPPED_HEALING, explained
from compress_cli.progress import listener
from compress_cli.ranks import together

Source = Annotated[
    str,
    typer.Option(
        help="The dense checkpoint it was made from: a folder, a hub name or `embedded`.",
        metavar="MODEL",
        callback=options.checkpoints,
        show_default=False,
    ),
]
New = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="The folder to write.", show_default="OUT itself, once the new one is verified"
    ),
]
Train = Annotated[
    str | None,
    typer.Option(
        help="What is trained, with commas between: `norms`, `scales`, `values`, `factors`, …",
        metavar="NAMES",
        show_default="all that the checkpoint has",
    ),
]


def heal(
    out: options.Checkpoint,
    source: Source,
    data: Annotated[
        str | None,
        typer.Option(
            help="Text to train on; its end is held out and decides what is kept.",
            metavar="TEXT",
            show_default="the calibration text",
            callback=options.readable,
        ),
    ] = None,
    new: New = None,
    train: Train = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", "-r", help="A recipe whose `heal` is taken.", metavar="RECIPE", show_default=False
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(help="Tokens to train on: `500k`, `2M`.", metavar="COUNT", show_default="500k"),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            "--rate",
            help="Largest learning rate, relative to each tensor's size; `auto` tries several.",
            show_default="auto",
            metavar="NUMBER",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change another key of `heal`; the value is YAML. May be given several times.",
            metavar="KEY=VALUE",
            show_default=False,
        ),
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Precision = options.Dtype.auto,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the folder of --out once the new one is verified.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard an unfinished healing that had other options.")
    ] = False,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a compressed checkpoint against the dense model; its layout and its bytes stay what they are.

    The iterate with the least KL on held-out text is kept, the checkpoint as it was among them. Stopped half-way, the
    same command goes on where it was.

    Examples:

    `compress heal ./my-model-w2 --source ./my-model --data notes.txt -o ./my-model-w2-healed`

    `compress heal ./my-model-w2 --source ./my-model --train norms,scales --tokens 2M`
    """
    settings = _settings(recipe, options.settings(set_), tokens=tokens, rate=_number(rate))
    with explained(STOPPED_HEALING), together() as ranks:
        asked: dict[str, Any] = {
            "source": options.local(source),
            "data": data,
            "train": None if train is None else [name.strip() for name in train.split(",") if name.strip()],
            "settings": settings,
            "new": new,
            "seed": seed,
            "device": device,
            "dtype": dtype.value,
            "overwrite": overwrite,
            "restart": restart,
            "trust_remote_code": trust_remote_code,
            "progress": listener(quiet=quiet),
        }
        result = api.heal(out, **asked) if ranks is None else library.heal_together(out, ranks, asked)
    if result is None:  # the first rank has written it
        return
    if json:
        print_json(result)
    elif not quiet:
        healing = result.report.healing
        assert healing is not None
        forecast = (
            "" if healing.twice is None else f" Twice the tokens would bring about {healing.twice:.4f}."
        )
        screen().print(
            f"{result.out} is healed and verified: held-out KL {healing.start_kl:.4f} → {healing.end_kl:.4f} after "
            f"{healing.tokens:,} tokens in {words.in_time(healing.seconds)} ({healing.ended}).{forecast}",
            markup=False,
            soft_wrap=True,
        )


def _number(rate: str | None) -> float | str | None:
    """A rate as a number where it is one; anything else is left to the recipe's check."""
    try:
        return None if rate is None else float(rate)
    except ValueError:
        return rate


def _settings(recipe: str | None, changes: dict[str, Any], **given: Any) -> dict[str, Any]:
    """The keys of ``heal``: those of a recipe, then those of ``--set``, then the options' own."""
    found: dict[str, Any] = {}
    if recipe is not None:
        section = Recipe.load(recipe).heal
        if section is None:
            raise UserError(f"The recipe {recipe} has no 'heal'; name one that has, such as w2-heal.")
        found = section.model_dump(mode="json", exclude_defaults=True)
    found |= {key.removeprefix("heal."): value for key, value in changes.items()}
    return found | {key: value for key, value in given.items() if value is not None}
