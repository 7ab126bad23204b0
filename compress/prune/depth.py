"""Depth pruning: which decoder blocks a model can do without."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.calibrate.loss_head import head_loss
from compress.calibrate.walk import walk_blocks
from compress.errors import UserError
from compress.models.architecture import require_next_token_loss
from compress.models.skeleton import Skeleton

By = Literal["angle", "loss"]


def choose_blocks(
    skeleton: Skeleton, tokens: Tensor, count: int, by: By, *, device: torch.device | str, dtype: torch.dtype
) -> tuple[int, ...]:
    """Block selection: the ``count`` blocks whose removal matters least, by their indices, rising.

    Args:
        skeleton: the model; no block may be loaded.
        tokens: int64 ``[samples, length]``.
        count: how many.
        by: ``angle``: those whose outputs lie nearest in angle to their inputs (arXiv:2403.17887, eq. 3, for single blocks);
            ``loss``: one after the other, the block without which the cross entropy is least (arXiv:2402.09025, section 3).
        device, dtype: where and in what blocks are computed.

    Raises:
        UserError: as many blocks as there are, or activations that are not finite.
    """
    total = len(skeleton.blocks)
    if count >= total:
        raise UserError(f"'depth_pruning.blocks': {count} of {total} blocks cannot be left out")
    if by == "angle":
        angles = _angles(skeleton, tokens, device, dtype)
        return tuple(sorted(sorted(range(total), key=lambda index: angles[index])[:count]))
    require_next_token_loss(skeleton.model, "'depth_pruning.by: loss' needs")
    dropped: list[int] = []
    for _ in range(count):
        losses = {
            index: _loss(skeleton, tokens, {*dropped, index}, device, dtype)
            for index in range(total)
            if index not in dropped
        }
        dropped.append(min(losses, key=lambda index: losses[index]))
    return tuple(sorted(dropped))


def named_blocks(skeleton: Skeleton, blocks: Sequence[int]) -> tuple[int, ...]:
    """The blocks of a recipe's list, rising.

    Raises:
        UserError: one that the model does not have, or all that it has.
    """
    total = len(skeleton.blocks)
    found = tuple(sorted(set(blocks)))
    if found[-1] >= total or len(found) == total:
        raise UserError(
            f"'depth_pruning.blocks': {', '.join(map(str, found))} of {total} blocks, numbered from 0, cannot be left out"
        )
    return found


def _angles(
    skeleton: Skeleton, tokens: Tensor, device: torch.device | str, dtype: torch.dtype
) -> list[float]:
    """The mean angle between each block's input and output, as a share of a half turn."""
    distances = []
    with walk_blocks(skeleton, tokens, device=device, dtype=dtype) as walk, torch.no_grad():
        for index in walk:
            angles = [
                torch.arccos(F.cosine_similarity(before.float(), after.float(), dim=-1).clamp(-1, 1)).mean()
                for (before, _), after in zip(walk.stream.inputs(index), walk.stream.run(index), strict=True)
            ]
            distances.append(float(torch.stack(angles).mean()) / math.pi)
    return distances


def _loss(
    skeleton: Skeleton, tokens: Tensor, dropped: set[int], device: torch.device | str, dtype: torch.dtype
) -> float:
    """Mean cross entropy of the next tokens with some blocks left out, one block in memory."""
    kept = [index for index in range(len(skeleton.blocks)) if index not in dropped]
    with walk_blocks(skeleton, tokens, device=device, dtype=dtype, blocks=kept, through_last=True) as walk:
        for _ in walk:
            pass
        outputs = (hidden for hidden, _ in walk.stream.inputs(kept[-1]))
        return head_loss(skeleton, tokens, outputs, device=device, dtype=dtype)
