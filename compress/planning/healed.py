"""What healing may change of an output besides its packed weights: the dense parameters that it trains, by their tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from compress_kernels.layouts import PackedInteger, TensorSpec
from torch import nn

from compress.errors import UserError
from compress.models.skeleton import Skeleton
from compress.planning.methods import build
from compress.planning.plan import PlannedWeight
from compress.recipe.recipe import Recipe

_MATRICES = frozenset({"values", "smallest"})
_NOTHING = TensorSpec((0,), torch.float32)
LOGIT_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}
"""Healing runs windows together while their logits stay under this: many at once on a GPU, or its kernels are small."""


def logit_bytes(device: torch.device | str) -> int:
    """Bytes of logits of windows that run together on ``device``."""
    return LOGIT_BYTES.get(torch.device(device).type, LOGIT_BYTES["cpu"])


def trainables(recipe: Recipe) -> tuple[Any, ...]:
    """What the recipe's ``heal`` trains, and what earlier healing of the same checkpoint trained; empty without ``heal``.

    Raises:
        UserError: an unknown name or option.
    """
    if recipe.heal is None:
        return ()
    return tuple(build("trainable", method) for method in (*recipe.heal.train, *recipe.heal.earlier))


def healed_parameters(
    skeleton: Skeleton,
    recipe: Recipe,
    weights: Sequence[PlannedWeight],
    *,
    entries: Iterable[Any] | None = None,
) -> dict[str, str]:
    """Parameter → disk tensor of the dense parameters that healing may change.

    Args:
        skeleton: the model.
        recipe: with ``heal``; without it there are none.
        weights: those that are compressed.
        entries: in place of the recipe's trainables.

    Raises:
        UserError: a parameter that is not one tensor on disk as it is in the model.
    """
    dense = left_dense(skeleton, recipe, weights)
    wanted: set[str] = set()
    for entry in trainables(recipe) if entries is None else entries:
        wanted |= entry.parameters(skeleton.model, dense)
    return {name: _disk_tensor(skeleton, name) for name in sorted(wanted) if name not in skeleton.tied}


def left_dense(
    skeleton: Skeleton, recipe: Recipe, weights: Iterable[PlannedWeight]
) -> Mapping[str, nn.Module]:
    """Parameter → module of the blocks' matrices that no step takes, of a model whose blocks or widths are pruned."""
    if recipe.depth_pruning is None and recipe.width_pruning is None:
        return {}
    planned = {weight.view.parameter for weight in weights}
    return {
        view.parameter: skeleton.model.get_submodule(view.module)
        for view in skeleton.views
        if view.block is not None and view.kind in ("linear", "conv1d") and view.parameter not in planned
    }


def _disk_tensor(skeleton: Skeleton, name: str) -> str:
    pieces = skeleton.pieces.get(name, ())
    if len(pieces) == 1 and pieces[0].whole and pieces[0].dims == tuple(range(len(pieces[0].box))):
        return pieces[0].disk
    raise UserError(
        f"heal: {name} is not one tensor on disk as the model has it, and cannot be written back: leave it out of 'train'"
    )


def trained_numbers(skeleton: Skeleton, recipe: Recipe, weights: Sequence[PlannedWeight]) -> dict[str, int]:
    """Trainable of the recipe's ``heal`` → how many numbers it trains.

    Raises:
        UserError: one finds nothing to train, or ``dress`` in a recipe that leaves out no widths.
    """
    _check_dress(recipe)
    counts: dict[str, int] = {}
    for method in recipe.heal.train if recipe.heal is not None else ():
        entry = build("trainable", method)
        counts[method.name] = numbers_of(skeleton, recipe, weights, entry)
        if not counts[method.name]:
            raise UserError(
                f"heal: there is nothing to train as '{method.name}': {entry.found_in}; leave it out of 'train'"
            )
    return counts


def _check_dress(recipe: Recipe) -> None:
    heal = recipe.heal
    if heal is None or heal.dress is None:
        return
    alone = recipe.width_pruning is not None and recipe.depth_pruning is None and not recipe.steps
    if not alone or "values" not in {method.name for method in heal.train}:
        raise UserError(
            "heal: 'dress' teaches a model to do without what 'width_pruning' leaves out: it goes with a recipe of that alone "
            "whose 'heal' trains 'values'"
        )


def numbers_of(skeleton: Skeleton, recipe: Recipe, weights: Sequence[PlannedWeight], entry: Any) -> int:
    """How many numbers one trainable finds; the arguments are those of :func:`trained_numbers`."""
    packed = sum(_numbers(weight, entry) for weight in weights)
    parameters = healed_parameters(skeleton, recipe, weights, entries=[entry])
    return packed + sum(skeleton.model.get_parameter(name).numel() for name in parameters)


def _numbers(weight: PlannedWeight, entry: Any) -> int:
    if weight.stored != weight.layout and weight.stored.name == "dense":
        return 0
    if hasattr(entry, "numbers"):
        return int(entry.numbers(weight.layout, weight.view.shape))
    specs = weight.layout.specs(weight.view.shape)
    names = entry.suffixes(weight.layout, weight.view.shape)
    return sum(_numbers_of(specs, suffix, weight.numel) for suffix in names)


def _numbers_of(specs: Mapping[str, TensorSpec], suffix: str, numel: int) -> int:
    """Numbers in a tensor; packed zero points are as many as scales, and packed codes as many as weights."""
    if suffix == "weight_packed":
        return numel
    return math.prod(specs["weight_scale" if suffix == "weight_zero_point" else suffix].shape)


def _kept(weight: PlannedWeight) -> int:
    """The values under a mask."""
    return math.prod(weight.layout.specs(weight.view.shape).get("weight_values", _NOTHING).shape)


def healing_memory(
    skeleton: Skeleton,
    recipe: Recipe,
    weights: Sequence[PlannedWeight],
    numbers: Mapping[str, int],
    output_bytes: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> int:
    """Bytes that healing takes: both models, fp32 copies of what is trained (seven, three with ``offload``), places of kept
    values, activations and logits of a step.

    Args:
        skeleton: the model.
        recipe: with ``heal``; without it nothing is taken.
        weights: those that are compressed, of whose grids the codes take a byte each.
        numbers: as :func:`trained_numbers` counts them.
        output_bytes: of the output's weight files.
        dtype: in which both models compute.
        device: on which.
    """
    heal = recipe.heal
    if heal is None:
        return 0
    parameters = sum(parameter.numel() for parameter in skeleton.model.parameters())
    vocabulary = int(skeleton.model.config.get_text_config().vocab_size)
    together = heal.length * max(
        1, min(heal.batch, logit_bytes(device) // (heal.length * vocabulary * dtype.itemsize))
    )
    widths = sum(view.shape[0] + view.shape[1] for view in skeleton.views if view.block is not None)
    kept = max(1, len(skeleton.blocks)) if heal.checkpointing else 1
    activations = 2 * together * widths * dtype.itemsize // kept
    logits = 4 * together * vocabulary * dtype.itemsize + (1 << 28)
    codes = sum(weight.numel for weight in weights if isinstance(weight.layout, PackedInteger))
    places = 4 * sum(map(_kept, weights)) if numbers.keys() & _MATRICES else 0
    models = 1 + len(heal.teachers) + (heal.dress is not None)
    teachers = models * parameters * dtype.itemsize
    copies = (12 if heal.offload else 28) * sum(numbers.values())
    return teachers + output_bytes + codes + places + copies + activations + logits
