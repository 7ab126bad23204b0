"""Agglomerative clustering with average linkage."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def average_linkage(distances: Tensor, count: int) -> list[list[int]]:
    """Put what is nearest together until ``count`` clusters are left.

    The distance of two clusters is the mean of the distances of their members (UPGMA), kept up to date by Lance and Williams'
    formula. Of equal distances the first pair is taken, so that the result is the same every time.

    Args:
        distances: ``[n, n]``, symmetric.
        count: how many clusters, 1 to ``n``.

    Returns:
        The clusters, each with its members rising, in the order of their first members.
    """
    apart = distances.detach().cpu().double().numpy().copy()
    np.fill_diagonal(apart, np.inf)
    clusters = {place: [place] for place in range(len(apart))}
    while len(clusters) > count:
        near, far = sorted(divmod(int(apart.argmin()), len(apart)))
        own, other = len(clusters[near]), len(clusters[far])
        apart[near] = (own * apart[near] + other * apart[far]) / (own + other)
        apart[:, near] = apart[near]
        apart[near, near] = np.inf
        apart[far] = apart[:, far] = np.inf
        clusters[near] += clusters.pop(far)
    return sorted(sorted(members) for members in clusters.values())
