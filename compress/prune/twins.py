"""Twins: neurons of an FFN that compute the same, found by their weights alone.

Iterative feature merging merges functionally equivalent features of a layer without data. Here two neurons are equivalent
where every weight that computes them (gate, up) has rows of the same direction; the one of the pair that its reader
hears less is removed, and the fit of the reader (:mod:`compress.linalg.eliminate`) puts its column onto the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_STRIP = 1 << 24
"""Cosines that are held together."""


def twins(producers: Sequence[Tensor], reader: Tensor, most: int, likeness: float) -> Tensor:
    """Numbers of the neurons that have a twin which stays, int64, the likest pairs first.

    Args:
        producers: fp32 ``[neurons, in]`` each; a pair is as alike as the least of its cosines.
        reader: fp32 ``[out, neurons]``.
        most: how many may go.
        likeness: the least cosine of a pair.
    """
    rows = [weight / weight.norm(dim=1, keepdim=True).clamp_min(1e-30) for weight in producers]
    pairs = _pairs(rows, likeness)
    size = reader.norm(dim=0)
    alive = torch.ones(reader.shape[1], dtype=torch.bool)
    gone: list[int] = []
    for first, second in pairs:
        if len(gone) == most:
            break
        if alive[first] and alive[second]:
            weaker = first if size[first] <= size[second] else second
            alive[weaker] = False
            gone.append(weaker)
    return torch.tensor(sorted(gone), dtype=torch.int64, device=reader.device)


def _pairs(rows: Sequence[Tensor], likeness: float) -> list[tuple[int, int]]:
    """Pairs of rows that are alike in all weights, the likest first."""
    count = len(rows[0])
    step = max(1, _STRIP // max(1, count))
    found: list[tuple[float, int, int]] = []
    for first in range(0, count, step):
        cosines = torch.stack([weight[first : first + step] @ weight.T for weight in rows]).amin(0)
        places = (cosines >= likeness).nonzero().tolist()
        found += [(float(cosines[i, j]), first + i, j) for i, j in places if first + i < j]
    return [(i, j) for _, i, j in sorted(found, key=lambda pair: (-pair[0], pair[1], pair[2]))]
