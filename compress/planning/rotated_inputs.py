"""Inputs that are rotated while the model runs, where a rotation is asked for that the stored weights alone cannot express."""

from __future__ import annotations

from dataclasses import replace

from compress.errors import UserError
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView
from compress.planning.methods import Methods, rotation_of
from compress.recipe.recipe import Recipe
from compress.score.rotated import ROTATED

_LARGEST = 1 << 12
"""The largest block: what fast kernels multiply in one go."""


def with_rotated_inputs(
    skeleton: Skeleton, recipe: Recipe, view: WeightView, methods: Methods, place: str
) -> Methods:
    """The methods of a weight; its inputs are rotated before they are rounded where ``rotation`` has ``online: true`` and no
    space of the model that they lie in is rotated already.

    Args:
        skeleton: the model, rotated.
        recipe: what to do.
        view: the weight.
        methods: its own.
        place: the key of its step, for messages.

    Raises:
        UserError: the step has a part that does not go with rotated inputs.
    """
    settings = rotation_of(recipe)
    if settings is None or not settings.online or methods.activations is None:
        return methods
    if view.kind not in ("linear", "conv1d") or view.block is None:
        return methods
    # Code that reads a layer's weight would find it in another basis.
    if view.parameter in skeleton.source.rotated_inputs or view.module in skeleton.flow.read:
        return methods
    columns = view.shape[1]
    block = min(columns & -columns, _LARGEST)
    if block < 2:
        return methods
    reason = _objection(methods)
    if reason:
        raise UserError(
            f"{place}: 'rotation' with 'online: true' rotates the inputs of {view.name}, which does not go with {reason}: set "
            "'online: false'"
        )
    try:
        return replace(methods, activations=replace(methods.activations, hadamard=block))
    except ValueError as error:
        raise UserError(f"{place}.activations: {error}: set rotation's 'online: false'") from error


def _objection(methods: Methods) -> str:
    """What of a step does not go with inputs in another basis; empty if all does."""
    if methods.block_solvers:
        return "solvers of whole blocks"
    if lacking := sorted(methods.needs - ROTATED):
        return f"a score or solver that asks for {lacking[0].replace('_', ' ')} of single inputs"
    return ""
