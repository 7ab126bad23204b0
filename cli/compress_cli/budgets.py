"""The options by which a budget stands in the place of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from compress.errors import UserError
from compress.recipe.runtimes import AUTO, RUNTIMES, TRIALS


def runtime_names() -> list[str]:
    """Return the runtimes that `--runtime` takes."""
    return [AUTO, *RUNTIMES]


Budget = Annotated[
    str | None,
    typer.Option(
        help="Size of the weight files, instead of a recipe: the best that fits is searched for.",
        metavar="SIZE",
        show_default=False,
    ),
]
Bits = Annotated[
    float | None,
    typer.Option(
        help="The same, as bits that a parameter takes on average, everything counted.", show_default=False
    ),
]
Ratio = Annotated[
    float | None, typer.Option(help="The same, as a share of the model's bytes.", show_default=False)
]
Fit = Annotated[
    str | None,
    typer.Option(
        help="The same, as the machine that the model has to fit: `8GB-ram`, `24GB-vram`.",
        metavar="MACHINE",
        show_default=False,
    ),
]
Time = Annotated[
    str | None,
    typer.Option(
        "--time",
        help="A second budget: what the products of a decoding step may take on a measured device, predicted: `30ms-cpu`, "
        "`0.8ms-h200`.",
        metavar="DURATION",
        show_default=False,
    ),
]
RuntimeName = Annotated[
    str | None,
    typer.Option(
        "--runtime",
        help="What runs the output of a budget: `transformers`, `vllm`, `llama.cpp`, `mlx`, `native`.",
        metavar="RUNTIME",
        show_default="transformers, or native where that alone fits",
        autocompletion=runtime_names,
    ),
]
Trials = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Allocations of a budget whose true divergence is measured.",
        show_default=str(TRIALS),
    ),
]
SaveRecipe = Annotated[
    Path | None,
    typer.Option(
        "--save-recipe",
        help="Write the recipe of a budget to this file too.",
        metavar="FILE",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class Asked:
    """The options of a budget as they were given."""

    budget: str | None = None
    bits: float | None = None
    ratio: float | None = None
    fit: str | None = None
    time: str | None = None
    runtime: str | None = None
    trials: int | None = None
    save_recipe: Path | None = None

    @property
    def given(self) -> bool:
        """Whether there is a budget."""
        return any(value is not None for value in (self.budget, self.bits, self.ratio, self.fit))

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the functions that search for a budget; what was not given is left out."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def refuse_beside(self, **others: object) -> None:
        """Refuse options that do not go with a budget.

        Raises:
            UserError: one is given.
        """
        for name, value in others.items():
            if value is not None and value != []:
                raise UserError(
                    f"--{name.replace('_', '-')} does not go with a budget, which searches for a recipe; leave one of them out."
                )

    def refuse_alone(self) -> None:
        """Refuse options of a budget where there is none.

        Raises:
            UserError: one is given.
        """
        for name in ("time", "runtime", "trials", "save_recipe"):
            if getattr(self, name) is not None:
                raise UserError(
                    f"--{name.replace('_', '-')} goes with a budget: give --budget, --bits, --ratio or --fit too."
                )
