"""Neurons that compute the same, and what becomes of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress.linalg.eliminate import eliminate
from compress.prune.twins import twins


def weights(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Gate and up projection ``[10, 16]`` and their reader ``[6, 10]``; 3 and 8 compute the same up to a factor."""
    draw = torch.Generator().manual_seed(seed)
    gate, up, down = (torch.randn(*shape, generator=draw) for shape in ((10, 16), (10, 16), (6, 10)))
    gate[8], up[8] = gate[3], 2 * up[3]
    down[:, 8] *= 0.1
    return gate, up, down


def test_the_weaker_of_a_pair_goes() -> None:
    gate, up, down = weights()
    assert twins([gate, up], down, 4, 0.99).tolist() == [8]
    down[:, 3] *= 1e-3
    assert twins([gate, up], down, 4, 0.99).tolist() == [3]


def test_all_weights_have_to_agree() -> None:
    gate, up, down = weights()
    assert twins([gate], down, 4, 0.99).tolist() == [8]
    assert twins([gate, -up.roll(1, 0)], down, 4, 0.99).tolist() == []
    gate[8] = -gate[8]
    assert twins([gate, up], down, 4, 0.99).tolist() == []


def test_the_likest_first_and_no_more_than_may_go(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, up, down = weights()
    draw = torch.Generator().manual_seed(1)
    gate[5], up[5] = gate[0] + 0.1 * torch.randn(16, generator=draw), up[0]
    down[:, 5] = 0
    assert twins([gate, up], down, 1, 0.9).tolist() == [8]
    assert twins([gate, up], down, 2, 0.9).tolist() == [5, 8]
    monkeypatch.setattr("compress.prune.twins._STRIP", 30)
    assert twins([gate, up], down, 2, 0.9).tolist() == [5, 8]


def test_of_three_that_are_alike_one_stays() -> None:
    gate, up, down = weights()
    gate[6], up[6] = gate[3], up[3]
    down[:, 6] *= 0.5
    assert twins([gate, up], down, 5, 0.99).tolist() == [6, 8] or twins(
        [gate, up], down, 5, 0.99
    ).tolist() == [3, 8]
    assert len(twins([gate, up], down, 5, 0.99)) == 2


def test_what_a_twin_said_is_said_by_the_other() -> None:
    gate, up, down = weights()
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(2))
    hidden = torch.nn.functional.silu(x @ gate.T) * (x @ up.T)
    gram = hidden.T @ hidden / len(x)
    first = twins([gate, up], down, 4, 0.99)
    found = eliminate(down, gram, torch.arange(10).unsqueeze(1), 9, first=first)
    assert found.kept.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 9]
    torch.testing.assert_close(found.theta[:, 3], down[:, 3] + 2 * down[:, 8], rtol=1e-2, atol=1e-2)
    assert found.error < 1e-4
    # More go after them, by what they cost.
    more = eliminate(down, gram, torch.arange(10).unsqueeze(1), 6, first=first)
    assert len(more.kept) == 6
    assert 8 not in more.kept.tolist()
    assert more.error > found.error
