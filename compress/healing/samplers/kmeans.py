"""``kmeans``: as many windows of each cluster of the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.healing.samplers.base import Model, mean_embeddings
from compress.healing.samplers.fresh import Fresh


@dataclass(frozen=True)
class KMeans(Fresh):
    """Clusters of windows by k-means over the mean of their tokens' embeddings; every cluster gives as many windows as it
    has, up to an equal share (Diversify and Conquer, arXiv:2409.11378, its first round).

    The paper's later rounds draw more from clusters whose training falls behind. ``oversample`` times the windows are looked
    at.
    """

    clusters: int = 16
    oversample: int = 4
    iterations: int = 10

    name: ClassVar[str] = "kmeans"

    def __post_init__(self) -> None:
        if min(self.clusters, self.oversample, self.iterations) < 1:
            raise ValueError("clusters, oversample and iterations are at least 1")

    def candidates(self, count: int) -> int:
        """See :class:`~compress.healing.samplers.base.Selecting`."""
        return self.oversample * count

    @torch.no_grad()
    def select(self, windows: Tensor, count: int, model: Model, generator: torch.Generator) -> Tensor:
        """See :class:`~compress.healing.samplers.base.Selecting`."""
        features = mean_embeddings(windows, model, torch.float32)
        cluster = clustered(features, min(self.clusters, len(windows)), self.iterations, generator)
        return windows[in_turn(cluster, generator)[:count]]


def clustered(points: Tensor, count: int, iterations: int, generator: torch.Generator) -> Tensor:
    """The cluster int64 ``[n]`` of each of the points ``[n, width]``.

    Lloyd's iteration from k-means++ points, each drawn by its squared distance from those before.
    """
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    while len(chosen) < count:
        far = torch.cdist(points, points[chosen]).amin(1).square() + 1e-12
        chosen.append(int(torch.multinomial(far, 1, generator=generator)))
    centres = points[chosen]
    cluster = torch.cdist(points, centres).argmin(1)
    for _ in range(iterations):
        sums = torch.zeros_like(centres).index_add_(0, cluster, points)
        sizes = torch.bincount(cluster, minlength=count).unsqueeze(1)
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
        cluster = torch.cdist(points, centres).argmin(1)
    return cluster


def in_turn(cluster: Tensor, generator: torch.Generator) -> Tensor:
    """All points, int64 ``[n]``: one of each cluster at random, then a second of each, until they are used up."""
    order = torch.randperm(len(cluster), generator=generator)
    seen: dict[int, int] = {}
    turns = []
    for one in cluster[order].tolist():
        turns.append(seen.get(one, 0))
        seen[one] = turns[-1] + 1
    return order[torch.tensor(turns).argsort(stable=True)]
