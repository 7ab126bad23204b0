"""An estimate of the memory that a run takes: one block, the statistics of its inputs, the activations, one solver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from compress.calibrate.stream import IN_MEMORY
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView
from compress.recipe.recipe import Recipe
from compress.score.statistics import GRADIENT_NEEDS

_SQUARE = frozenset({"gram", "cross"})
_BATCH_TOKENS = 4096  # that a block sees at once
_GRADIENT_STATES = (
    1 << 28
)  # bytes of all blocks' activations in a pass with gradients; above, they are in files
_SOLVER_SQUARES = {
    "gram": 1,
    "cross": 2,
}  # the factor; how far the inputs have drifted, and a product with it
_BOTH_SIDES = 5  # the left side, damped, its factor, and copies of it; the right one's beyond what `_SOLVER_SQUARES` counts
_BOTH_SIDES_WEIGHTS = (
    14  # fp32: besides, the grid's low ends and steps, goals and errors of both sides, whole tiles of each
)
_SOLVER_WEIGHTS = 4  # fp32: the weight, the working copy, the result and one block of errors


@dataclass(frozen=True)
class Economy:
    """What a run trades time for memory by; the bytes it writes depend on ``windows`` alone, and there by rounding.

    Attributes:
        in_memory: bytes of activations that are kept in memory; more of them are in a file.
        windows: calibration windows that a block sees at once; None leaves it to the stream.
        passes: over the windows for one block, each of which gathers the statistics of a part of its weights.
    """

    in_memory: int = IN_MEMORY
    windows: int | None = None
    passes: int = 1


def peak_memory(
    skeleton: Skeleton,
    recipe: Recipe,
    needs: Mapping[str, frozenset[str]],
    dtype: torch.dtype,
    economy: Economy = Economy(),
) -> int:
    """Bytes beyond the interpreter and its libraries, at the block where most is held.

    ``needs``: weight → the statistics gathered for it; the weights that are not compressed do not appear.
    ``dtype``: in which blocks are computed.
    ``economy``: how the run saves memory.
    """
    block_bytes = [_parameters(skeleton, name) * dtype.itemsize for name in skeleton.blocks]
    by_block: dict[int | None, list[WeightView]] = {}
    for view in skeleton.views:
        if view.name in needs:
            by_block.setdefault(view.block, []).append(view)
    activations, batch = (0, 0) if not any(needs.values()) else _activations(skeleton, recipe, dtype, economy)
    if any("cross" in one for one in needs.values()):  # the dense model's beside them
        activations *= 2
    low_rank = any(step.lowrank is not None for step in recipe.all_steps)
    apart = {i: _decomposition(views) if low_rank else 0 for i, views in by_block.items()}
    held = [
        size
        + max(
            _statistics(skeleton, part, needs) + max(_solver(part, needs), apart.get(i, 0), batch)
            for part in parts_of(skeleton, by_block.get(i, []), needs, economy.passes)
        )
        for i, size in enumerate(block_bytes)
    ]
    outside = _outside(skeleton, by_block.get(None, []), needs, dtype)
    gradients = _gradients(skeleton, recipe, by_block, needs, apart)
    width_pruning = max(block_bytes, default=0) + _elimination(skeleton, recipe)
    if recipe.width_pruning is not None and recipe.width_pruning.allocate == "fisher":
        readers = (v for v in skeleton.views if v.block is not None and v.expert is None)
        moments = 2 * max((_gradient_moment("output_gradients", view) for view in readers), default=0)
        whole = _gradients(skeleton, recipe, by_block, needs, apart, output_gradients=True)
        gradients = max(gradients, whole + moments + width_pruning)
    return max(activations + max([*held, outside], default=0), gradients, width_pruning)


def _outside(
    skeleton: Skeleton, views: list[WeightView], needs: Mapping[str, frozenset[str]], dtype: torch.dtype
) -> int:
    """Everything outside the blocks, which is loaded together, the moments of the head's inputs, and one solver."""
    if not views:
        return 0
    loaded = sum(_numel(view) for view in skeleton.views if view.block is None) * dtype.itemsize
    moments = max(sum(_moment(need, view) for need in needs[view.name]) for view in views)
    return loaded + moments + _solver(views, needs)


def _elimination(skeleton: Skeleton, recipe: Recipe) -> int:
    """fp64 squares of the widest input, where what reads it is fitted anew: the Gram matrix, its inverse and a product."""
    if recipe.width_pruning is None:
        return 0
    if (recipe.width_pruning.neurons, recipe.width_pruning.groups, recipe.width_pruning.counts) == (
        None,
    ) * 3:
        return 0
    share = min(recipe.width_pruning.neurons or 1.0, recipe.width_pruning.groups or 1.0)
    if recipe.width_pruning.counts is not None:
        share = 1.0 if recipe.width_pruning.groups is None else recipe.width_pruning.groups
    widest = max((v.shape[1] for v in skeleton.views if v.block is not None and v.expert is None), default=0)
    return int(8 * 5 * (widest / share) ** 2)


def _gradients(
    skeleton: Skeleton,
    recipe: Recipe,
    by_block: Mapping[int | None, list[WeightView]],
    needs: Mapping[str, frozenset[str]],
    apart: Mapping[int | None, int],
    output_gradients: bool = False,
) -> int:
    """Bytes of the pass with gradients, if any: a block in fp32 with its gradients and their moments, or the logits.

    ``apart``: block → what it takes to take one of its weights apart, which is done there where ranks are chosen by it.
    ``output_gradients``: the pass is made whatever the weights' own methods ask for.
    """
    ranked = output_gradients or any(
        step.lowrank is not None and step.lowrank.allocate == "fisher" for step in recipe.all_steps
    )
    extra = frozenset({"output_gradients"}) if ranked else frozenset()
    asked = {name: (own & GRADIENT_NEEDS) | extra for name, own in needs.items()}
    if not any(asked.values()) and not output_gradients:
        return 0
    hidden, vocabulary = _hidden_size(skeleton), _vocabulary(skeleton)
    blocks = [
        12 * _parameters(skeleton, name)
        # What is there of a moment, and the term that is added to it.
        + 2 * sum(_gradient_moment(need, view) for view in by_block.get(i, []) for need in asked[view.name])
        + (apart.get(i, 0) if ranked else 0)
        for i, name in enumerate(skeleton.blocks)
    ]
    head = 4 * vocabulary * (4 * recipe.calibrate.length + hidden)
    inside = 4 * recipe.calibrate.length * 24 * hidden
    return (
        min(
            _GRADIENT_STATES,
            4 * recipe.calibrate.samples * recipe.calibrate.length * hidden * (len(skeleton.blocks) + 2),
        )
        + max(*blocks, head)
        + inside
    )


def _gradient_moment(need: str, view: WeightView) -> int:
    out, columns = view.shape
    sizes = {"squared_gradient": out * columns, "gradient_rows": out}
    return 4 * sizes.get(need, out * out + columns * columns)


def _decomposition(views: list[WeightView]) -> int:
    """fp64: the weight, rooted and moved, and both its factors; the sides, and of the shorter one root, inverse, vectors."""
    shapes = [view.shape for view in views]
    sizes = (4 * o * i + o * o + i * i + 5 * min(o, i) ** 2 for o, i in shapes)
    return 8 * max(sizes, default=0)


def _numel(view: WeightView) -> int:
    return view.shape[0] * view.shape[1]


def _parameters(skeleton: Skeleton, block: str) -> int:
    return sum(parameter.numel() for parameter in skeleton.model.get_submodule(block).parameters())


def _hidden_size(skeleton: Skeleton) -> int:
    return _setting(skeleton, "hidden_size") or skeleton.model.get_input_embeddings().weight.shape[-1]


def _vocabulary(skeleton: Skeleton) -> int:
    return _setting(skeleton, "vocab_size") or skeleton.model.get_input_embeddings().weight.shape[0]


def _setting(skeleton: Skeleton, name: str) -> int | None:
    """A size in the configuration; the largest where blocks have sizes of their own, ``None`` where it has none."""
    value = getattr(skeleton.model.config.get_text_config(), name, None)
    if isinstance(value, list | tuple):
        value = max(value, default=None)
    return value if isinstance(value, int) and value > 0 else None


def _activations(skeleton: Skeleton, recipe: Recipe, dtype: torch.dtype, economy: Economy) -> tuple[int, int]:
    """Bytes of the calibration set's activations, and of one batch's inside a block."""
    hidden = _hidden_size(skeleton)
    row = recipe.calibrate.length * hidden
    widest = max(hidden, _setting(skeleton, "intermediate_size") or 4 * hidden)
    # The residual, its normalised copy, q, k, v and the output; then gate, up and their product.
    together = _BATCH_TOKENS if economy.windows is None else economy.windows * recipe.calibrate.length
    inside = max(recipe.calibrate.length, together) * (6 * hidden + 3 * widest)
    kept = recipe.calibrate.samples * row * dtype.itemsize
    return kept if kept <= economy.in_memory else 0, inside * dtype.itemsize


def parts_of(
    skeleton: Skeleton, views: Sequence[WeightView], needs: Mapping[str, frozenset[str]], parts: int
) -> list[list[WeightView]]:
    """A block's weights in at most ``parts`` parts with statistics of about equal size; weights of one input stay together."""
    sizes: dict[object, int] = {}
    members: dict[object, list[WeightView]] = {}
    for view, key, size in _inputs(skeleton, views, needs):
        members.setdefault(key, []).append(view)
        sizes[key] = size
    found: list[list[WeightView]] = [[] for _ in range(max(1, min(parts, len(members))))]
    loads = [0] * len(found)
    for key in sorted(sizes, key=lambda key: -sizes[key]):
        least = loads.index(min(loads))
        found[least] += members[key]
        loads[least] += max(1, sizes[key])
    order = {view.name: place for place, view in enumerate(views)}
    return [sorted(part, key=lambda view: order[view.name]) for part in found]


def _inputs(
    skeleton: Skeleton, views: Sequence[WeightView], needs: Mapping[str, frozenset[str]]
) -> list[tuple[WeightView, object, int]]:
    """Each weight, a key of its statistics, and their bytes: those that see the same input (q/k/v, gate/up) share theirs."""
    groups = [group for group in skeleton.fused_groups(views) if group[0].expert is None]
    shared = {view.name: group[0].name for group in groups for view in group}
    found: list[tuple[WeightView, object, int]] = []
    for view in views:
        key = (shared.get(view.name, view.name), view.shape[1], needs[view.name])
        if "token_gradients" in needs[view.name]:  # each weighs the tokens of the same input in its own way
            key = (view.name, view.shape[1], needs[view.name])
        if view.expert is not None:
            key = (f"{view.module}.{view.expert}", view.shape[1], needs[view.name])
        found.append((view, key, sum(_moment(need, view) for need in needs[view.name])))
    return found


def _statistics(skeleton: Skeleton, views: Sequence[WeightView], needs: Mapping[str, frozenset[str]]) -> int:
    """Bytes of fp32 moments."""
    return sum({key: size for _, key, size in _inputs(skeleton, views, needs)}.values())


def _moment(need: str, view: WeightView) -> int:
    if need in GRADIENT_NEEDS:  # read back from a file, each weight's in its turn
        return 0
    return 4 * view.shape[1] ** (2 if need in _SQUARE else 1)


def _solver(views: Sequence[WeightView], needs: Mapping[str, frozenset[str]]) -> int:
    def one(view: WeightView) -> int:
        out, columns = view.shape
        squares = sum(_SOLVER_SQUARES.get(need, 0) for need in needs[view.name]) * columns**2
        if not needs[view.name] & {"output_gradients", "token_gradients", "fisher"}:
            return 4 * (_SOLVER_WEIGHTS * _numel(view) + squares)
        return 4 * (_BOTH_SIDES_WEIGHTS * _numel(view) + squares + _BOTH_SIDES * (out**2 + columns**2))

    return max(map(one, views), default=0)
