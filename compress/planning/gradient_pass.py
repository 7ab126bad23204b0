"""What the pass with gradients takes: bytes at its fullest, and multiply-adds for a token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from compress.calibrate.kfac import PASSES
from compress.calibrate.output_gradients import has_output_gradients
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView
from compress.planning.batches import batch_of
from compress.planning.model_sizes import hidden_size, numel, outside_of, parameters_of, vocabulary_size
from compress.recipe.recipe import Recipe
from compress.score.statistics import GRADIENT_NEEDS

KEPT_BY_AUTOGRAD = 4
"""Times what a block computes for a batch."""
_STATES = 1 << 28
"""Bytes of all blocks' hidden states; above, they are in files."""
_OF_LOGITS = 12
"""Bytes for a logit: its log-probability, the gradient by it, and that by the logit, in fp32. Drawing labels takes no more."""
_SMALL = 8 << 20
"""Bytes of a piece that the C library keeps once it is freed, where another piece of its size is asked for elsewhere."""
_FORWARD, _BACKWARD = 1.0, 3.0
"""Passes over a block, in forwards: to its outputs, then once more and back."""
_BY_OUTPUT = frozenset({"output_gradients", "token_gradients"})


def gradients_memory(
    skeleton: Skeleton,
    recipe: Recipe,
    by_block: Mapping[int | None, Sequence[WeightView]],
    needs: Mapping[str, frozenset[str]],
    apart: Mapping[int | None, int],
    dtype: torch.dtype,
    output_gradients: bool = False,
) -> int:
    """Bytes of the pass with gradients, 0 without: the hidden states, and a block with its moments or the output head.

    ``by_block``: block → its weights that are compressed.
    ``apart``: block → what it takes to take one of its weights apart, which is done there where ranks are chosen by it.
    ``dtype``: in which gradients are computed.
    ``output_gradients``: the pass is made whatever the weights' own methods ask for.
    """
    ranked = output_gradients or any(
        step.lowrank is not None and step.lowrank.allocate == "fisher" for step in recipe.all_steps
    )
    extra = frozenset({"output_gradients"}) if ranked else frozenset()
    asked = {name: (own & GRADIENT_NEEDS) | extra for name, own in needs.items()}
    if not any(asked.values()) and not output_gradients:
        return 0
    calibrate, size = recipe.calibrate, dtype.itemsize
    inside = KEPT_BY_AUTOGRAD * batch_of(skeleton, recipe, dtype, 1, "cpu").inside
    blocks = [
        size * parameters_of(skeleton, name)
        + _of_weights(skeleton, by_block.get(i, ()), asked, size)
        + (apart.get(i, 0) if ranked else 0)
        for i, name in enumerate(skeleton.blocks)
    ]
    tokens = min(calibrate.samples * calibrate.length, max(calibrate.gradient_tokens, calibrate.length))
    states = size * tokens * hidden_size(skeleton) * (len(skeleton.blocks) + 2)
    weighted = any("token_gradients" in one for one in asked.values())
    directions = (8 + size) * tokens * hidden_size(skeleton) if weighted else 0
    logits = calibrate.length * vocabulary_size(skeleton)
    head = size * outside_of(skeleton) + _kept(_OF_LOGITS * logits, 4 * logits)
    # Of all tokens at once: the gradients by a block's outputs in fp32, and their directions before and after they are rounded.
    return (states if states <= _STATES else 0) + max(
        max(blocks, default=0) + _kept(inside, 0) + directions, head
    )


def _kept(total: int, piece: int) -> int:
    """Bytes of a computation whose pieces have ``piece`` bytes, with what the C library keeps of earlier ones."""
    return total + min(total, 2 * _SMALL) if piece < _SMALL else total


def _of_weights(
    skeleton: Skeleton, views: Sequence[WeightView], asked: Mapping[str, frozenset[str]], size: int
) -> int:
    """Moments of a block's weights, each beside a term that is added or the mean that is made of it; gradients of weights."""
    moments = 2 * sum(gradient_moment(need, view) for view in views for need in asked[view.name])
    by_weight = [view for view in views if of_weight(skeleton, view, asked[view.name])]
    return moments + (size + (4 if size < 4 else 0)) * sum(map(numel, by_weight))


def of_weight(skeleton: Skeleton, view: WeightView, needs: frozenset[str]) -> bool:
    """Whether the gradient of the weight itself is needed, not those by its outputs alone."""
    wanted = needs & GRADIENT_NEEDS
    return bool(wanted - _BY_OUTPUT) or (bool(wanted) and not has_output_gradients(skeleton, view))


def gradient_moment(need: str, view: WeightView) -> int:
    """Bytes of one moment of a weight's gradients, fp32."""
    out, columns = view.shape
    sizes = {"squared_gradient": out * columns, "gradient_rows": out}
    return 4 * sizes.get(need, out * out + columns * columns)


def gradients_work(skeleton: Skeleton, needs: Mapping[str, frozenset[str]], blocks: float) -> float:
    """Multiply-adds for a token of the pass with gradients.

    Args:
        skeleton: the model.
        needs: weight → the statistics gathered for it.
        blocks: one forward of all blocks.
    """
    views = {view.name: view for view in skeleton.views if view.name in needs}
    by_output = any(needs[name] & _BY_OUTPUT for name in views)
    factors = any("fisher" in needs[name] for name in views)
    by_weight = any(of_weight(skeleton, view, needs[name]) for name, view in views.items())
    backwards = max(1, by_output + (PASSES + 1 if factors else by_weight))
    moments = 0.0
    for name, view in views.items():
        if needs[name] & GRADIENT_NEEDS:
            out, columns = view.shape
            # Half of a product with itself is computed, and mirrored.
            moments += (out**2 + columns**2) / 2
    head = float(vocabulary_size(skeleton) * hidden_size(skeleton))
    return (_FORWARD + _BACKWARD * backwards) * blocks + _BACKWARD * head + moments
