"""What can be measured: shipped recipes, and what ``compress heal`` makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A recipe, or another cell that is healed.

    Attributes:
        recipe: a shipped name; empty where it is healed.
        base: the cell that is healed.
        train: what is trained, as ``--train`` takes it.
        rate: the largest learning rate.
    """

    recipe: str = ""
    base: str = ""
    train: str = ""
    rate: float = 0.0


def _cells() -> dict[str, Cell]:
    grids = ("w4-gptq", "w4-gptq-asym", "w4-qronos", "w3-gptq", "w2-gptq", "best-w4", "best-w3", "best-w2")
    masks = ("sparse24-awp", "sparse70-awp")
    others = (
        "w4-rtn",
        "w4-hqq",
        "w4-awq",
        "w4-adaround",
        "sparse50-awp",
        "sparse50-sparsegpt",
        "nf4",
        "w8",
        "svd80",
    )
    found = {name: Cell(name) for name in (*grids, *masks, *others)}
    for name in grids:
        found[f"{name} + scales"] = Cell(base=name, train="scales,norms", rate=1e-3)
        found[f"{name} + codes"] = Cell(base=name, train="codes,scales,norms", rate=1e-3)
    for name in masks:
        found[f"{name} + values"] = Cell(base=name, train="values,norms", rate=1e-3)
    return found


CELLS: Mapping[str, Cell] = _cells()
