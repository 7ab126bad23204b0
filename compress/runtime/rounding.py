"""Rounded inputs of a written checkpoint where no packed module rounds them: decoded weights, and a dense twin."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import partial

from torch import nn

from compress.calibrate.simulate import InputRounding, Simulation, round_argument
from compress.checkpoint.source import Source
from compress.formats.packed_weight import PackedWeight
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView


def simulation_of(skeleton: Skeleton, packed: Mapping[str, PackedWeight], source: Source) -> Simulation:
    """The activation rounding of a checkpoint, for the blocks of a model whose weights are its decoded ones.

    Args:
        skeleton: the model.
        packed: the checkpoint's packed weights by name.
        source: the checkpoint.
    """
    simulation = Simulation()
    for index in range(len(skeleton.blocks)):
        views = {view.name: view for view in skeleton.block_views(index)}
        roundings = {
            name: rounding
            for name in views
            if name in packed and (rounding := rounding_of(packed[name], source)) is not None
        }
        simulation.set(index, views, roundings)
    return simulation


def rounding_of(weight: PackedWeight, source: Source) -> InputRounding | None:
    """How the inputs of a packed weight are rounded; None where they are not."""
    if weight.activations is None:
        return None
    stored = {suffix: source.read(weight.names[suffix]).clone() for suffix in weight.activations.stored}
    return InputRounding(weight.activations, stored)


def round_decoded(
    model: nn.Module,
    views: Iterable[WeightView],
    packed: Mapping[str, PackedWeight],
    places: Collection[str],
    source: Source,
) -> None:
    """Round the inputs of linear layers whose packed weight had to be decoded, such as a tied head's.

    Args:
        model: whose modules they are.
        views: the weights to look at.
        packed: the packed weights by name.
        places: names of those that a packed module holds, which rounds by itself.
        source: the checkpoint.
    """
    for view in views:
        if view.name in packed and view.name not in places and view.kind != "expert":
            rounding = rounding_of(packed[view.name], source)
            if rounding is not None:
                hook = partial(round_argument, rounding)
                model.get_submodule(view.module).register_forward_pre_hook(hook, with_kwargs=True)
