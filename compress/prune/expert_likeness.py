"""Expert likeness: how far apart the outputs of a block's routed experts are, from one pass over calibration text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.calibrate.experts import eager_experts
from compress.calibrate.walk import walk_blocks
from compress.models.skeleton import Skeleton
from compress.prune.expert_saliency import Routing, output_alone, routings
from compress.prune.experts import RoutedExperts

TOKENS = 4096
"""Tokens, at most, that all experts of a block are asked about: this many times the experts are what the pass costs."""
_ELEMENTS = 1 << 24
"""Elements of outputs that are held together."""


@dataclass(frozen=True)
class Likeness:
    """The routed experts of a block beside each other.

    Attributes:
        frequency: of each expert, the share of the tokens that are sent to it.
        distances: fp64 ``[experts, experts]``, the root mean square over tokens of the distance between their outputs.
    """

    frequency: Sequence[float]
    distances: Tensor


@torch.no_grad()
def expert_likeness(
    skeleton: Skeleton,
    routed: RoutedExperts,
    tokens: Tensor,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
) -> list[Likeness]:
    """How alike the routed experts of every block are, of the dense model.

    The distance of experts ``i`` and ``j`` is ``(mean_x ‖f_i(x) − f_j(x)‖²)^½`` over :data:`TOKENS` evenly chosen tokens ``x``,
    whichever experts they are sent to. HC-SMoE (arXiv:2410.08589) takes the distance of the mean outputs instead,
    which calls experts alike that differ in every token; that it is taken by token here is our choice.

    Args:
        skeleton: the model; no block may be loaded.
        routed: its experts.
        tokens: int64 ``[samples, length]``.
        device, dtype: where and in what blocks are computed.

    Returns:
        Block with experts → its experts' likeness.

    Raises:
        UserError: the code of the model does not hand the router's choices to its experts.
    """
    found: list[Likeness] = []
    last = max(routed.owners)
    with walk_blocks(skeleton, tokens, device=device, dtype=dtype) as walk:
        for index in walk:
            if index > last:
                break
            if index in routed.owners:
                module: Any = skeleton.model.get_submodule(routed.owners[index])
                with eager_experts([module]):
                    given = routings(walk.stream.run(index), module, skeleton, index)
                    found.append(_likeness(module, given, routed.total, tokens.numel()))
    return found


def _likeness(module: Any, given: Iterator[Routing], total: int, tokens: int) -> Likeness:
    every = -(-tokens // TOKENS)
    counts = torch.zeros(total, dtype=torch.float64)
    gram = torch.zeros(total, total, dtype=torch.float64)
    seen = asked = 0
    for hidden, experts, weights in given:
        for expert, count in zip(*torch.unique(experts, return_counts=True), strict=True):
            if expert < total:  # the others are tokens that are sent nowhere
                counts[expert] += int(count)
        chosen = hidden[-seen % every :: every]
        seen += len(hidden)
        asked += len(chosen)
        step = max(1, _ELEMENTS // (total * hidden.shape[1]))
        for part in chosen.split(step) if len(chosen) else ():
            outputs = torch.stack(
                [
                    output_alone(module, part, expert, experts.dtype, weights.dtype).float().flatten()
                    for expert in range(total)
                ]
            )
            gram += (outputs @ outputs.T).double().cpu()
    squares = gram.diagonal()[:, None] + gram.diagonal() - 2 * gram
    return Likeness((counts / tokens).tolist(), (squares.clamp_min(0) / asked).sqrt())
