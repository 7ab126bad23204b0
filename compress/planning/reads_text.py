"""Whether a recipe looks at calibration text, from the recipe alone: known before a model is planned."""

from __future__ import annotations

import torch

from compress.planning.methods import Methods, methods_of, rotation_of, transforms_of
from compress.recipe.recipe import Recipe


def reads_text(recipe: Recipe, dtype: torch.dtype) -> bool:
    """Whether any part of a recipe looks at calibration text; healing has a text of its own.

    Args:
        recipe: what is done.
        dtype: the model's, in which scales are stored.

    Raises:
        UserError: a method that there is not, or that does not go with its step.
    """
    depth, rotation = recipe.depth_pruning, rotation_of(recipe)
    return (
        (depth is not None and isinstance(depth.blocks, int))
        or recipe.width_pruning is not None
        or recipe.kv_cache is not None
        or (rotation is not None and rotation.residual == "learned")
        or bool(transforms_of(recipe))
        or any(_reads_text(methods_of(step, dtype)) for step in recipe.steps)
    )


def _reads_text(methods: Methods) -> bool:
    inputs = methods.activations
    stored = inputs is not None and bool(inputs.stored)
    return stored or bool(methods.needs) or bool(methods.block_solvers)
