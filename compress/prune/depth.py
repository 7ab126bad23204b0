"""Whole decoder blocks left out: a smaller model of the same architecture, which loads anywhere.

A checkpoint without some of its blocks is the same files seen under other names: nothing is copied before it is written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.calibrate.loss_head import head_loss
from compress.calibrate.walk import walk_blocks
from compress.checkpoint.source import Source
from compress.errors import UserError
from compress.models.skeleton import Skeleton

By = Literal["angle", "loss"]
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def without_blocks(source: Source, dropped: Sequence[int]) -> Source:
    """``source`` as if its ``dropped`` decoder blocks had never been: the others are renumbered.

    Raises:
        UserError: the number of blocks is not told by ``config.json`` in a way that is known here, or all would go.
    """
    if not dropped:
        return source
    key = next((name for name in _COUNTS if isinstance(source.config.get(name), int)), None)
    if key is None:
        raise UserError(
            f"{source.path / 'config.json'} does not say in a known way how many blocks there are"
        )
    blocks = int(source.config[key])
    kept = [index for index in range(blocks) if index not in set(dropped)]
    if not kept or len(kept) + len(set(dropped)) != blocks:
        raise UserError(f"{source.path}: a model of {blocks} blocks cannot lose {sorted(dropped)}")
    changes: dict[str, Any] = {key: len(kept)}
    for name, value in source.config.items():
        # One entry for each block: kinds of attention, say.
        if isinstance(value, list) and len(value) == blocks and name != "architectures":
            changes[name] = [value[index] for index in kept]
    return replace(
        source,
        headers=_renumbered(source.headers, blocks, {old: new for new, old in enumerate(kept)}),
        config={**source.config, **changes},
        changes=changes,
        dropped=tuple(sorted(dropped)),
    )


def _renumbered(headers: Mapping[str, Any], blocks: int, places: Mapping[int, int]) -> dict[str, Any]:
    """The tensors of kept blocks under their new numbers, and all others as they are."""
    found: dict[str, Any] = {}
    for name, info in headers.items():
        match = re.search(r"\.(?:layers|h|blocks|block)\.(\d+)\.", f".{name}")
        if match is None or int(match[1]) >= blocks:
            found[name] = info
        elif (old := int(match[1])) in places:
            start, stop = match.start(1) - 1, match.end(1) - 1
            found[f"{name[:start]}{places[old]}{name[stop:]}"] = info
    return found


def choose_blocks(
    skeleton: Skeleton, tokens: Tensor, count: int, by: By, *, device: torch.device | str, dtype: torch.dtype
) -> tuple[int, ...]:
    """Which ``count`` blocks do least.

    ``angle``: those whose outputs lie nearest in angle to their inputs (arXiv:2403.17887, eq. 3, for single blocks);
    ``loss``: one after the other, the block without which the cross entropy is least (arXiv:2402.09025, section 3).

    Raises:
        UserError: as many blocks as there are.
    """
    total = len(skeleton.blocks)
    if count >= total:
        raise UserError(f"'depth_pruning.blocks': {count} of {total} blocks cannot be left out")
    if by == "angle":
        angles = _angles(skeleton, tokens, device, dtype)
        return tuple(sorted(sorted(range(total), key=lambda index: angles[index])[:count]))
    dropped: list[int] = []
    for _ in range(count):
        losses = {
            index: _loss(skeleton, tokens, {*dropped, index}, device, dtype)
            for index in range(total)
            if index not in dropped
        }
        dropped.append(min(losses, key=lambda index: losses[index]))
    return tuple(sorted(dropped))


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
