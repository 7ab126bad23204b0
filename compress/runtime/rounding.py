"""Rounded inputs of a written checkpoint where no packed module rounds them: decoded weights, and a dense twin."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from compress.calibrate.kv_cache import CacheRounding
from compress.calibrate.simulate import InputRounding, Simulation, round_argument
from compress.checkpoint.source import Source
from compress.formats.base import KEY_SCALE, VALUE_SCALE
from compress.formats.packed_weight import PackedWeight
from compress.formats.read import cache_scheme
from compress.models.kv_cache import cached_attention, store_through
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
        simulation.set_caches(index, cache_roundings(skeleton, index, source))
    return simulation


def cache_roundings(skeleton: Skeleton, index: int, source: Source) -> dict[str, CacheRounding]:
    """Attention module of a block → how the checkpoint wants its keys and values stored; empty where it does not say.

    Scales that the checkpoint lacks are 1, as servers take them.
    """
    scheme = cache_scheme(source)
    if scheme is None or scheme.dynamic:
        return {}

    def scale(name: str) -> Tensor:
        return source.read(name).clone() if name in source.headers else torch.ones(1)

    return {
        one.module: CacheRounding(
            scheme, scale(f"{one.disk}.{KEY_SCALE}"), scale(f"{one.disk}.{VALUE_SCALE}")
        )
        for one in cached_attention(skeleton, index)
    }


def round_caches(skeleton: Skeleton, index: int, source: Source) -> None:
    """Store keys and values of a block as the checkpoint wants it, for as long as the model lives."""
    for name, store in cache_roundings(skeleton, index, source).items():
        store_through(skeleton.model.get_submodule(name), store)


def rounding_of(weight: PackedWeight, source: Source) -> InputRounding | None:
    """How the inputs of a packed weight are rounded; None where they are not."""
    if weight.activations is None:
        return None
    return InputRounding(weight.activations, weight.inputs(source))


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
