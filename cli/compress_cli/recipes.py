"""`compress recipes`: what ships, and when to use which."""

from __future__ import annotations

from typing import Annotated, Any

import typer
import yaml
from compress_kernels.value_types import FLOAT_TYPES

from compress.recipe.grids import OutsideGrid
from compress.recipe.recipe import Recipe, find_recipe, shipped
from compress.recipe.schemes import SCHEMES
from compress.recipe.sections import Step
from compress_cli import options
from compress_cli.display import print_json, screen, table


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Print the YAML of this recipe or scheme.",
            metavar="[NAME]",
            show_default=False,
            autocompletion=options.recipe_names,
        ),
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="List every recipe, and the schemes by their names.")
    ] = False,
    json: options.Json = False,
) -> None:
    """List the shipped recipes and the schemes that they write, or print one as the start of your own.

    Examples:

    `compress recipes` (the six to begin with), `compress recipes --all`

    `compress recipes w4-gptq > mine.yaml`, edit it, then `compress run MODEL -r mine.yaml -o OUT`
    """
    if name is None:
        _list(json=json, everything=all_)
        return
    path, changes = find_recipe(name, files=False)
    recipe = Recipe.load(name)
    if json:
        print_json(recipe.model_dump(mode="json"))
    elif changes:
        data = recipe.model_dump(mode="json", exclude_defaults=True)
        typer.echo(yaml.safe_dump(data, sort_keys=False, width=110), nl=False)
    else:
        typer.echo(path.read_text(encoding="utf-8"), nl=False)


FIRST = ("w4-gptq", "best-w4", "w4-rtn", "w8", "q4_k_m", "sparse50-awp")
"""The recipes to begin with: 4 bits, the best 4 bits, 4 bits without data, 8 bits, llama.cpp, half of the weights zero."""


def _list(*, json: bool, everything: bool) -> None:
    recipes = [Recipe.load(name) for name in shipped()]
    if json:
        rows = [
            {"name": one.name, "what": what_it_makes(one), "when": one.when, "schemes": _schemes_of(one.name)}
            for one in recipes
        ]
        print_json(rows)
        return
    columns = {"recipe": "left", "what it makes": "left", "when to use it": "fold"}
    shown = recipes if everything else [Recipe.load(name) for name in FIRST]
    table(None, columns, [[one.name, what_it_makes(one), one.when] for one in shown])
    if not everything:
        screen().print(
            f"{len(recipes) - len(shown)} more recipes, and the names of other tools for them: compress recipes --all\n"
            "Which to take for a size and a server: compress recommend MODEL --fit 4GB --runtime vllm",
            markup=False,
            soft_wrap=True,
        )
        return
    columns = {"scheme": "left", "recipe": "left", "what it writes": "fold", "also called": "fold"}
    table(None, columns, scheme_rows())


def scheme_rows() -> list[list[str]]:
    """Return name, recipe, contents and other names of every scheme; recipes' own names are schemes too."""
    return [[scheme.name, scheme.recipe, scheme.what, ", ".join(scheme.aliases)] for scheme in SCHEMES]


def _schemes_of(recipe: str) -> dict[str, dict[str, Any]]:
    """Scheme → the settings with which the recipe writes it."""
    return {scheme.name: dict(scheme.settings) for scheme in SCHEMES if scheme.recipe == recipe}


def what_it_makes(recipe: Recipe) -> str:
    """Return what becomes of the model in a few words: `2 blocks fewer`, `50% zeros + 4 bits`."""
    blocks = None if recipe.depth_pruning is None else recipe.depth_pruning.blocks
    count = blocks if blocks is None or isinstance(blocks, int) else len(blocks)
    depth = [] if count is None else [f"{count} blocks fewer"]
    kept = (
        recipe.width_pruning.model_dump(
            exclude_none=True, exclude={"allocate", "counts", "experts_by", "merge"}
        )
        if recipe.width_pruning is not None
        else {}
    )
    width = [f"{share:.0%} of the {name}" for name, share in kept.items()]
    if recipe.width_pruning is not None and recipe.width_pruning.experts_by == "merge":
        width = [f"{one}, merged" if one.endswith("experts") else one for one in width]
    if recipe.width_pruning is not None and recipe.width_pruning.counts is not None:
        width.append(f"fewer neurons in {len(recipe.width_pruning.counts)} blocks")
    healed = (
        [] if recipe.heal is None else ["healed by " + " and ".join(one.name for one in recipe.heal.train)]
    )
    steps = dict.fromkeys(_structure(step) for step in recipe.all_steps)
    return ", ".join([*depth, *width, *steps, *healed])


def _structure(step: Step) -> str:
    parts = []
    if step.prune is not None:
        share = step.prune.sparsity
        parts.append(f"{step.prune.pattern} zeros" if share is None else f"{share:.0%} zeros")
    if step.lowrank is not None:
        ratio = step.lowrank.ratio
        parts.append(f"rank {step.lowrank.rank}" if ratio is None else f"{ratio:.0%} low rank")
    if step.quantize is not None:
        bits = step.quantize.bits
        parts.append(f"{bits}-bit floats" if step.quantize.type in FLOAT_TYPES else f"{bits} bits")
    inputs = "" if step.activations is None else f", inputs {step.activations.scheme().label}"
    outside = f" for the {step.targets[0]}" if isinstance(step.quantize, OutsideGrid) else ""
    return " + ".join(parts) + inputs + outside
