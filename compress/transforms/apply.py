"""Apply a plan's transforms to one loaded block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from compress_kernels.activations import ActivationScheme
from torch import Tensor

from compress.calibrate.capture import call_block
from compress.calibrate.stream import BlockStream
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView
from compress.structures.base import Structure
from compress.transforms.base import Reader, Transform, Transformed
from compress.transforms.fold import find_fold


def transform_block(
    skeleton: Skeleton,
    stream: BlockStream,
    index: int,
    structures: Mapping[str, Structure],
    transforms: Sequence[Transform],
    editable: frozenset[str],
    activations: Mapping[str, ActivationScheme | None] | None = None,
) -> Transformed:
    """Apply ``transforms`` to the loaded block in place; its function does not change.

    Args:
        skeleton: the model; block ``index`` is loaded and dense.
        stream: its activations.
        index: the block.
        structures: name → structure of the weights that will be solved; no other weight is changed.
        transforms: in this order.
        editable: names of the vectors (parameters of one dimension) that may be changed.
        activations: name → how the weight's inputs will be rounded.
    """
    views = [view for view in skeleton.block_views(index) if view.name in structures]
    prefix = skeleton.blocks[index]
    block = skeleton.block_module(index)
    parameters = {f"{prefix}.{name}": parameter for name, parameter in block.named_parameters()}
    hidden, kwargs = next(iter(stream.inputs(index)))

    @torch.no_grad()
    def run() -> Tensor:
        return call_block(block, hidden.clone(), kwargs)

    done = Transformed()
    for transform in transforms:
        statistics = stream.observe(index, {view.name: transform.needs for view in views})
        for group in _input_groups(skeleton, index, views):
            fold = find_fold(
                group, [view for view in views if view.kind != "expert"], parameters, editable, run
            )
            reader = Reader(
                views=group,
                weights=tuple(view.get(parameters[view.parameter].detach()) for view in group),
                structures=tuple(structures[view.name] for view in group),
                statistics=statistics[group[0].name],
                activations=(activations or {}).get(group[0].name),
            )
            done.take(reader, fold, transform.scales(reader) if fold else None, parameters)
        for view in views:
            if view.kind == "expert":
                done.states[view.name] = "unscaled: an expert"
    return done


def _input_groups(
    skeleton: Skeleton, index: int, views: Sequence[WeightView]
) -> list[tuple[WeightView, ...]]:
    """The linear layers that read the same tensor, in the order of the data."""
    chosen = {view.name for view in views if view.kind != "expert"}
    groups = [tuple(view for view in stage if view.name in chosen) for stage in skeleton.stages(index)]
    return [group for group in groups if group]
