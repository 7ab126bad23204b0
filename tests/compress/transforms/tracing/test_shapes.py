"""Labels of dimensions that are cut in blocks, joined, or mixed with others."""

from __future__ import annotations

import pytest
import torch

from compress.transforms.tracing.labels import Along, Labels, Of
from compress.transforms.tracing.shapes import carried_by_view
from compress.transforms.tracing.spaces import Space


def _carry(
    shape: tuple[int, ...], dim: int, other: tuple[int, ...], block: int = 12
) -> tuple[tuple[int, ...], Space, bool]:
    """The labelled dimensions of a view, the space, and whether it was refused."""
    labels, tensor = Labels({}), torch.empty(shape, device="meta")
    space = Space(12, block)
    labels.put(tensor, tuple(Along(space) if place == dim else None for place in range(len(shape))))
    refused: list[torch.Tensor] = []
    row = carried_by_view(labels, tensor, other, refused.append)
    return tuple(place for place, label in enumerate(row) if label is not None), space, bool(refused)


@pytest.mark.parametrize(
    ("shape", "dim", "other", "found", "block"),
    [
        ((2, 3, 12), 2, (6, 12), (1,), 12),  # tokens put together
        ((6, 12), 1, (2, 3, 1, 12), (3,), 12),
        ((2, 3, 12), 2, (2, 3, 4, 3), (3,), 3),  # heads
        ((2, 12, 3), 1, (2, 12, 1, 3), (1,), 12),
    ],
)
def test_features_are_kept_or_cut_in_blocks(
    shape: tuple[int, ...], dim: int, other: tuple[int, ...], found: tuple[int, ...], block: int
) -> None:
    places, space, refused = _carry(shape, dim, other)
    assert places == found
    assert space.block == block
    assert not refused


def test_blocks_are_joined_again() -> None:
    places, space, refused = _carry((2, 3, 5, 3), 3, (2, 3, 15), block=3)
    assert places == (2,)
    assert space.block == 3
    assert not refused


@pytest.mark.parametrize(("shape", "dim", "other"), [((2, 12, 3), 1, (2, 36)), ((12, 4), 0, (3, 16))])
def test_features_mixed_with_others_are_refused(
    shape: tuple[int, ...], dim: int, other: tuple[int, ...]
) -> None:
    assert _carry(shape, dim, other)[2]


def test_a_parameters_dimension_is_not_cut() -> None:
    labels, tensor = Labels({}), torch.empty(4, 6, device="meta")
    labels.put(tensor, (Of("w", 0), Of("w", 1)))
    refused: list[torch.Tensor] = []
    assert carried_by_view(labels, tensor, (4, 2, 3), refused.append) == (Of("w", 0), None, None)
    assert refused
