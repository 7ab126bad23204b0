"""`compress train`: a small model from scratch, dense, sparse or of layers that are small."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from compress.errors import UserError
from compress.recipe.heal import token_count
from compress.system import units as words
from compress_cli import library, options
from compress_cli.display import print_json, screen


class Method(StrEnum):
    """What the linear layers are."""

    lost = "lost"
    low_rank = "low-rank"
    block_low_rank = "block-low-rank"
    bits = "bits"
    shift = "shift"
    full = "full"
    sparse = "sparse"


def train(
    method: Annotated[Method, typer.Argument(help="What the linear layers are.")],
    config: Annotated[
        str,
        typer.Argument(
            help="A folder with config.json and a tokenizer, or a hub name; its weights are not read.",
            metavar="CONFIG",
            callback=options.checkpoints,
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.", show_default=False)],
    data: Annotated[
        str,
        typer.Option(
            help="Text to train on; its end is held out.",
            metavar="TEXT",
            show_default=False,
            callback=options.readable,
        ),
    ],
    tokenizer: Annotated[
        str | None, typer.Option(help="A folder with another tokenizer.", show_default=False)
    ] = None,
    ratio: Annotated[float, typer.Option(help="Share of a linear layer's parameters.")] = 0.6,
    columns: Annotated[float, typer.Option(help="Share of the inputs that LOST keeps whole.")] = 0.05,
    gamma: Annotated[float, typer.Option(help="Weight of LOST's low-rank part.")] = 0.5,
    bits: Annotated[
        int | None,
        typer.Option(help="Bits of a weight of `bits` (4) and `shift` (3).", show_default=False),
    ] = None,
    sparsity: Annotated[float, typer.Option(help="Share of zeros of `sparse`.")] = 0.7,
    masks: Annotated[
        str,
        typer.Option(
            help="How `sparse` finds its masks: soft-shrink, hyper, auto, irrelevant, groups, lq, l0, gg, "
            "regrow, gumbel, jackpot, rewind, magnitude, random."
        ),
    ] = "soft-shrink",
    from_weights: Annotated[
        bool,
        typer.Option(
            "--from-weights", help="Begin at the weights of CONFIG (`full`, `sparse`, `bits`, `shift`)."
        ),
    ] = False,
    tokens: Annotated[str, typer.Option(help="Tokens to train on: `500k`, `2M`.")] = "1M",
    batch: Annotated[int, typer.Option(help="Windows in a step.")] = 8,
    length: Annotated[int, typer.Option(help="Tokens in a window.")] = 256,
    rate: Annotated[float, typer.Option(help="Largest learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Decides the weights and the windows.")] = 0,
    device: options.Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint.")] = False,
    json: options.Json = False,
) -> None:
    """Train a model from scratch on a text and write it as a checkpoint.

    LOST (arXiv:2508.02668) trains low-rank factors with an activation between them, beside a few whole columns; `bits` and
    `shift` train the bits of integers and powers of two, which are written packed. A checkpoint loads with `compress.load`, and
    after `import compress` with transformers; it can be evaluated, and quantized where it is not.

    Examples:

    `compress train lost ./my-model --data text.txt -o ./lost`

    `compress train sparse ./my-model --from-weights --data text.txt --sparsity 0.7 --masks hyper -o ./sparse`

    `compress train low-rank ./my-model --data text.txt --ratio 0.5 -o ./low`
    """
    count = token_count(tokens)
    if not isinstance(count, int):
        raise UserError(f"--tokens is a count such as 500k or 2M, not {tokens!r}")
    settings = library.TrainSettings(
        method=method.value,
        ratio=ratio,
        columns=columns,
        gamma=gamma,
        bits=bits,
        sparsity=sparsity,
        masks=masks,
        from_weights=from_weights,
        tokens=count,
        batch=batch,
        length=length,
        rate=rate,
        seed=seed,
    )
    trained = library.train(
        options.local(config),
        out,
        data=data,
        settings=settings,
        tokenizer=tokenizer,
        device=device,
        overwrite=overwrite,
    )
    if json:
        print_json(dataclasses.asdict(trained))
        return
    inside = words.in_parameters(trained.linear_parameters)
    seen = words.in_parameters(trained.losses[-1][0])
    screen().print(
        f"{out} is written: {words.in_parameters(trained.parameters)} parameters, {inside} of them in the linear layers, "
        f"held-out loss {trained.loss:.4f} nats per token after {seen} tokens.",
        markup=False,
    )
