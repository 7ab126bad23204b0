"""What a batch of calibration windows takes: inside a block, and while moments of the inputs of weights are summed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from compress.calibrate.stream import BATCH_TOKENS
from compress.models.skeleton import Skeleton
from compress.models.views import WeightView
from compress.planning.model_sizes import hidden_size, setting
from compress.recipe.recipe import Recipe
from compress.score.statistics import GRADIENT_NEEDS

_PRODUCTS = frozenset({"gram", "cross"})
_GRAM_ALONE = frozenset({"gram", "diagonal"})
_CHUNK, _WIDE, _WIDE_CHUNK = 512, 2048, 1024
"""Tokens that the kernel of moments copies at once; and of inputs of more columns than that. As in ``moments.cpp``."""
_TILE, _PANEL = 32, 12
"""Columns of its tiles and of its panels."""


@dataclass(frozen=True)
class Batch:
    """Tokens that a block sees at once, and bytes of what it computes for them."""

    tokens: int = 0
    inside: int = 0


def batch_of(
    skeleton: Skeleton, recipe: Recipe, dtype: torch.dtype, windows: int | None, device: str
) -> Batch:
    """One batch inside a block; ``windows`` in it, or as many as the stream takes."""
    hidden, length = hidden_size(skeleton), recipe.calibrate.length
    widest = max(hidden, setting(skeleton, "intermediate_size") or 4 * hidden)
    windows = windows or max(1, BATCH_TOKENS.get(device, BATCH_TOKENS["cpu"]) // length)
    tokens = length * min(windows, recipe.calibrate.samples)
    # The residual, its normalised copy, q, k, v and the output; then gate, up and their product.
    return Batch(tokens, tokens * (6 * hidden + 3 * widest) * dtype.itemsize)


def inputs_seen(
    views: Sequence[WeightView], needs: Mapping[str, frozenset[str]], tokens: int, dtype: torch.dtype
) -> int:
    """Bytes that the moments of the widest input take while they are summed, beyond the input and the sums.

    An expert is counted as if it saw all tokens of a batch.
    """
    return max((_summing(needs[view.name], tokens, view.shape[1], dtype) for view in views), default=0)


def _summing(needs: frozenset[str], tokens: int, columns: int, dtype: torch.dtype) -> int:
    """Bytes for one input ``[tokens, columns]``."""
    moments = needs - GRADIENT_NEEDS
    if not moments:
        return 0
    # The kernel's copies, or one in fp32 where there is no kernel: whether it was built is not asked here.
    copy = 4 * tokens * columns
    products = max(copy, moment_buffers(tokens, columns)) if moments & _PRODUCTS else copy
    if moments <= _GRAM_ALONE and "gram" in moments and "token_gradients" not in needs:
        return products
    # All else is computed from the input in fp32; for the cross moment the dense one is kept until then.
    kept = tokens * columns * dtype.itemsize if "cross" in moments else 0
    return copy + products + kept


def moment_buffers(tokens: int, columns: int) -> int:
    """Bytes of the copies that the kernel of moments takes: pairs of tokens as words, in tiles and in panels."""
    chunk = _WIDE_CHUNK if columns > _WIDE else _CHUNK
    pairs = min(-(-tokens // 2), chunk // 2)
    return 4 * pairs * sum(-(-columns // size) * size for size in (_TILE, _PANEL))
