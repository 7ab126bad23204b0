"""Average linkage beside scipy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from compress.prune.linkage import average_linkage


@pytest.mark.parametrize("count", [1, 2, 5, 11, 12])
def test_clusters_are_those_of_scipy(count: int) -> None:
    points = torch.randn(12, 3, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    distances = torch.cdist(points, points)
    found = average_linkage(distances, count)
    tree = linkage(squareform(distances.numpy(), checks=False), "average")
    labels = fcluster(tree, count, "maxclust")
    expected = sorted(np.flatnonzero(labels == label).tolist() for label in np.unique(labels))
    assert found == expected
    assert torch.equal(distances, torch.cdist(points, points))  # its input is as it was


def test_of_equal_distances_the_first_pair_is_taken() -> None:
    assert average_linkage(torch.ones(4, 4) - torch.eye(4), 2) == [[0, 1, 2], [3]]
    assert average_linkage(torch.zeros(3, 3), 3) == [[0], [1], [2]]


def test_the_mean_of_all_members_counts() -> None:
    """Single linkage would chain 0, 1, 2, 3; complete linkage would keep 2 from them."""
    points = torch.tensor([0.0, 1.0, 2.1, 3.5, 9.0])
    assert average_linkage((points[:, None] - points).abs(), 3) == [[0, 1], [2, 3], [4]]
