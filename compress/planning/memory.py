"""An estimate of the memory that a run takes: one block, the statistics of its inputs, the activations, one solver."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from compress.calibrate.stream_states import IN_MEMORY
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView
from compress.planning.batches import Batch, batch_of, inputs_seen
from compress.planning.dealt import dealt_solutions, sent_sums
from compress.planning.gradient_pass import KEPT_BY_AUTOGRAD, gradient_moment, gradients_memory
from compress.planning.model_sizes import hidden_size, numel, parameters_of
from compress.planning.parts import moment_bytes, parts_of, statistics_bytes
from compress.recipe.recipe import Recipe
from compress.system.precision import planned_gradient_dtype

_SOLVER_SQUARES = {"gram": 1, "cross": 2}
"""Squares of the inputs: the factor; how far the inputs have drifted, and a product with it."""
_BOTH_SIDES = 5
"""The left side, damped, its factor, and copies of it; the right one's beyond what ``_SOLVER_SQUARES`` counts."""
_BOTH_SIDES_WEIGHTS = 14
"""Copies in fp32: besides, the grid's low ends and steps, goals and errors of both sides, whole tiles of each."""
_SOLVER_WEIGHTS = 4
"""Copies in fp32: the weight, the working copy, the result and one block of errors."""
_COPIES = {"GPTQ": 2, "AdaRound": 12, "AWP": 9}
"""The same where a solver rounds rows in parts, or keeps more."""
_AT_ONCE, _RANGES = 3 << 20, 5
"""Elements that a solver rounds together, and under how many ranges it tries each."""
_ROUNDED_COPIES = 2
"""Copies in fp32: columns, and the values that they are rounded to."""
_OUTPUTS = 1 << 24
"""Elements of outputs of experts that are held while they are compared."""
_TRAINED_WEIGHTS = 8
"""Copies in fp32 of all weights of a block that are trained together: variables, gradients, what autograd keeps."""


@dataclass(frozen=True)
class Economy:
    """What a run trades time for memory by; the bytes it writes depend on ``windows`` alone, and there by rounding.

    Attributes:
        in_memory: bytes of activations that are kept in memory; more of them are in a file.
        windows: calibration windows that a block sees at once; None leaves it to the stream.
        passes: over the windows for one block, each of which gathers the statistics of a part of its weights.
        on_device: bytes of activations that an accelerator may keep; None for a quarter of its free memory.
    """

    in_memory: int = IN_MEMORY
    windows: int | None = None
    passes: int = 1
    on_device: int | None = None


def peak_memory(
    skeleton: Skeleton,
    recipe: Recipe,
    needs: Mapping[str, frozenset[str]],
    dtype: torch.dtype,
    economy: Economy = Economy(),
    *,
    device: str = "cpu",
    trained: bool = False,
    solvers: Mapping[str, Collection[str]] | None = None,
    processes: int = 1,
) -> int:
    """Bytes of tensors at the block where most is held.

    ``needs``: weight → the statistics gathered for it; the weights that are not compressed do not appear.
    ``dtype``: in which blocks are computed.
    ``economy``: how the run saves memory.
    ``device``: where blocks run, ``"cpu"`` or ``"cuda"``.
    ``trained``: whether a solver learns all weights of a block together.
    ``solvers``: weight → the classes of its solvers, which differ in what they hold.
    ``processes``: that share the work; the first of them, which holds most, is counted.
    """
    block_bytes = [parameters_of(skeleton, name) * dtype.itemsize for name in skeleton.blocks]
    by_block: dict[int | None, list[WeightView]] = {}
    for view in skeleton.views:
        if view.name in needs:
            by_block.setdefault(view.block, []).append(view)
    dense = trained or any("cross" in one for one in needs.values())
    activations, all_states, batch = 0, 0, Batch()
    if trained or any(needs.values()):
        all_states = kept_activations(skeleton, recipe, needs, dtype, trained=trained)
        room = economy.in_memory if device == "cpu" else economy.on_device
        activations = all_states if room is None or all_states <= room else 0
        batch = batch_of(skeleton, recipe, dtype, economy.windows, device)
    low_rank = any(step.lowrank is not None for step in recipe.all_steps)
    apart = {i: _decomposition(views) if low_rank else 0 for i, views in by_block.items()}
    held = []
    for i, size in enumerate(block_bytes):
        views = by_block.get(i, [])
        parts = _parts(skeleton, recipe, i, views, needs, economy.passes)
        at_once = views if trained else None
        copies = 2 if dense and len(parts) > 1 and recipe.true_sequential else 1
        inputs = max((inputs_seen(part, needs, batch.tokens, dtype) for part in parts), default=0)
        held.append(
            copies * size
            + max(
                statistics_bytes(skeleton, at_once or part, needs)
                + max(
                    dealt_solutions(part, _solver(part, needs, solvers or {}), processes),
                    apart.get(i, 0),
                    batch.inside + inputs,
                    sent_sums(part, needs, all_states, processes),
                )
                for part in parts
            )
        )
        if trained:
            variables = 4 * _TRAINED_WEIGHTS * sum(map(numel, views))
            held.append(
                size + statistics_bytes(skeleton, views, needs) + variables + KEPT_BY_AUTOGRAD * batch.inside
            )
    outside = _outside(skeleton, by_block.get(None, []), needs, dtype, solvers or {}, batch)
    backward = partial(
        gradients_memory, skeleton, recipe, by_block, needs, apart, planned_gradient_dtype(dtype, device)
    )
    gradients = backward()
    shaping = max(_elimination(skeleton, recipe), _merging(skeleton, recipe))
    width_pruning = max(block_bytes, default=0) + shaping
    if recipe.width_pruning is not None and recipe.width_pruning.allocate == "fisher":
        readers = (v for v in skeleton.views if v.block is not None and v.expert is None)
        moments = 2 * max((gradient_moment("output_gradients", view) for view in readers), default=0)
        whole = backward(output_gradients=True)
        gradients = max(gradients, whole + moments + width_pruning)
    return max(activations + max([*held, outside], default=0), gradients, width_pruning)


def _outside(
    skeleton: Skeleton,
    views: list[WeightView],
    needs: Mapping[str, frozenset[str]],
    dtype: torch.dtype,
    solvers: Mapping[str, Collection[str]],
    batch: Batch,
) -> int:
    """Everything outside the blocks, which is loaded together, the moments of the head's inputs, and one solver; or a batch."""
    if not views:
        return 0
    loaded = sum(numel(view) for view in skeleton.views if view.block is None) * dtype.itemsize
    moments = max(sum(moment_bytes(need, view) for need in needs[view.name]) for view in views)
    return (
        loaded + moments + max(_solver(views, needs, solvers), inputs_seen(views, needs, batch.tokens, dtype))
    )


def _elimination(skeleton: Skeleton, recipe: Recipe) -> int:
    """fp64 squares of the widest input, where what reads it is fitted anew: the Gram matrix, its inverse and a product."""
    if recipe.width_pruning is None or not recipe.width_pruning.refits:
        return 0
    share = min(recipe.width_pruning.neurons or 1.0, recipe.width_pruning.groups or 1.0)
    if recipe.width_pruning.counts is not None:
        share = 1.0 if recipe.width_pruning.groups is None else recipe.width_pruning.groups
    widest = max((v.shape[1] for v in skeleton.views if v.block is not None and v.expert is None), default=0)
    return int(8 * 5 * (widest / share) ** 2)


def _merging(skeleton: Skeleton, recipe: Recipe) -> int:
    """Where experts are merged: outputs of all of them for some tokens, twice; or the likeness of all neurons of two, as it is
    and in fp64, and six copies of an expert."""
    if recipe.width_pruning is None or recipe.width_pruning.experts_by != "merge":
        return 0
    block = min((view.block or 0 for view in skeleton.views if view.expert is not None), default=0)
    views = [view for view in skeleton.views if view.expert is not None and view.block == block]
    readers = [view for view in views if "down_proj" in view.parameter]
    outputs = min(_OUTPUTS, sum(view.shape[0] for view in readers) * 4096)
    neurons = max((view.shape[1] for view in readers), default=0)
    one = sum(numel(view) for view in views if view.expert == 0)
    return max(2 * 4 * outputs, 12 * neurons**2 + 6 * 4 * one)


def _decomposition(views: list[WeightView]) -> int:
    """fp64: the weight, rooted and moved, and both its factors; the sides, and of the shorter one root, inverse, vectors."""
    shapes = [view.shape for view in views]
    sizes = (4 * o * i + o * o + i * i + 5 * min(o, i) ** 2 for o, i in shapes)
    return 8 * max(sizes, default=0)


def kept_activations(
    skeleton: Skeleton,
    recipe: Recipe,
    needs: Mapping[str, frozenset[str]],
    dtype: torch.dtype,
    *,
    trained: bool = False,
) -> int:
    """Bytes of the calibration set's activations between two blocks; the dense model's are beside them where they are read."""
    calibrate = recipe.calibrate
    streams = 2 if trained or any("cross" in one for one in needs.values()) else 1
    return streams * calibrate.samples * calibrate.length * hidden_size(skeleton) * dtype.itemsize


def _parts(
    skeleton: Skeleton,
    recipe: Recipe,
    index: int,
    views: Sequence[WeightView],
    needs: Mapping[str, frozenset[str]],
    passes: int,
) -> list[list[WeightView]]:
    """What is observed and solved together: the stages of a block, or all of it, each in as many parts."""
    if not recipe.true_sequential:
        return parts_of(skeleton, views, needs, passes)
    names = {view.name for view in views}
    stages = [[view for view in stage if view.name in names] for stage in skeleton.stages(index)]
    return [part for stage in stages if stage for part in parts_of(skeleton, stage, needs, passes)] or [[]]


def _solver(
    views: Sequence[WeightView],
    needs: Mapping[str, frozenset[str]],
    solvers: Mapping[str, Collection[str]],
) -> int:
    def one(view: WeightView) -> int:
        out, columns = view.shape
        squares = sum(_SOLVER_SQUARES.get(need, 0) for need in needs[view.name]) * columns**2
        if not needs[view.name] & {"output_gradients", "token_gradients", "fisher"}:
            rounded = min(_RANGES * numel(view), max(_AT_ONCE, columns)) if needs[view.name] else 0
            copies = max(
                (_COPIES.get(one, _SOLVER_WEIGHTS) for one in solvers.get(view.name, ())),
                default=_SOLVER_WEIGHTS,
            )
            return 4 * (copies * numel(view) + squares + _ROUNDED_COPIES * rounded)
        return 4 * (_BOTH_SIDES_WEIGHTS * numel(view) + squares + _BOTH_SIDES * (out**2 + columns**2))

    return max(map(one, views), default=0)
