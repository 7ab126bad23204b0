"""What a run or a plan is asked for, and where it writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from compress.checkpoint.source import Source
from compress.planning.economy import MemoryBound
from compress.recipe.recipe import Recipe


@dataclass(frozen=True)
class Output:
    """Where a run writes.

    Attributes:
        folder: the folder to make.
        overwrite: whether it may exist.
        restart: whether an unfinished run into it may be discarded that was begun with other settings.
    """

    folder: Path
    overwrite: bool = False
    restart: bool = False


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        source: the checkpoint.
        recipe: what to do with it.
        device: where blocks run.
        dtype: what they are computed in: ``"auto"`` (the model's own), ``"bf16"``, ``"fp16"`` or ``"fp32"``.
        seed: decides which windows are drawn, and all else that is drawn.
        format: the output's; the recipe's own if None.
        folder: temporary files go there, where there is no ``output``.
        output: where the run writes; beside it the passes keep what another run can go on with. None for a plan.
        gradients: the folder that keeps gradient moments for other runs; None keeps none.
        plan_only: no weight will be solved: the sensitivity pass is left out unless sizes depend on it.
        strict: refuse a plan that leaves more than a twentieth of a block's matrix parameters dense.
        memory: what the run may hold; None for no bound.
    """

    source: Source
    recipe: Recipe
    device: torch.device
    dtype: str
    seed: int
    format: str | None
    folder: Path
    output: Output | None = None
    gradients: Path | None = None
    plan_only: bool = False
    strict: bool = False
    memory: MemoryBound | None = None
