"""Samplers that read the windows: clusters, the hardest ones, and what the model writes itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress import load
from compress.healing.samplers.base import Selecting
from compress.healing.samplers.kmeans import clustered, in_turn
from compress.healing.samplers.sensitivity import leverage
from compress.recipe import registry

from .test_registries import entry

WINDOWS = torch.randint(2, 256, (12, 10), generator=torch.Generator().manual_seed(0))
SELECTING = [name for name in registry.SAMPLERS if isinstance(entry("sampler", name), Selecting)]


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> Callable[[], torch.nn.Module]:
    return partial(load, tiny_model("llama"), dtype=torch.float32)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("name", SELECTING)
def test_a_sampler_takes_windows_and_does_so_again(name: str, model: Callable[[], torch.nn.Module]) -> None:
    sampler = entry("sampler", name)
    assert sampler.candidates(5) >= 5
    before, state = WINDOWS.clone(), torch.random.get_rng_state()
    draws = [sampler.select(WINDOWS, 5, model, seeded()) for _ in range(2)]
    assert torch.equal(*draws)
    assert draws[0].shape == (5, 10)
    assert torch.equal(WINDOWS, before)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_every_cluster_gives_as_many_windows() -> None:
    centres = 5 * torch.nn.functional.one_hot(torch.tensor([0] * 20 + [1] * 3 + [2] * 3), 8).float()
    points = centres + 0.1 * torch.randn(centres.shape, generator=seeded())
    cluster = clustered(points, 3, 10, seeded())
    assert [len(cluster[part].unique()) for part in (slice(0, 20), slice(20, 23), slice(23, 26))] == [1, 1, 1]
    order = in_turn(cluster, seeded())
    assert torch.equal(order.sort().values, torch.arange(26))
    assert torch.bincount(cluster[order[:9]]).tolist() == [3, 3, 3]


@pytest.mark.parametrize("by", ["el2n", "loss"])
def test_the_windows_that_are_predicted_worst_are_taken(
    by: str, model: Callable[[], torch.nn.Module]
) -> None:
    with torch.no_grad():
        p = model()(WINDOWS).logits[:, :-1].double().softmax(-1)
    truth = torch.nn.functional.one_hot(WINDOWS[:, 1:], p.shape[-1])
    scores = (p - truth).norm(dim=-1).mean(1) if by == "el2n" else -(p * truth).sum(-1).log().mean(1)
    found = entry("sampler", "el2n", by=by).select(WINDOWS, 4, model, seeded())
    assert torch.equal(found, WINDOWS[scores.topk(4).indices.sort().values])


def test_a_share_of_the_windows_goes_on_as_the_model_does(model: Callable[[], torch.nn.Module]) -> None:
    found: Tensor = entry("sampler", "self", share=0.5, prompt=4).select(WINDOWS, 12, model, seeded())
    changed = (found != WINDOWS).any(1)
    assert int(changed.sum()) == 6
    assert torch.equal(found[:, :4], WINDOWS[:, :4])


def test_leverage_scores_are_the_diagonal_of_the_projection() -> None:
    points = torch.randn(20, 4, generator=seeded(), dtype=torch.float64)
    points[3] *= 30
    scores = leverage(points, 1e-12)
    torch.testing.assert_close(scores, (points @ torch.linalg.pinv(points)).diagonal())
    assert int(scores.argmax()) == 3
    assert float(scores.sum()) == pytest.approx(4)


def test_a_window_unlike_the_others_is_taken(model: Callable[[], torch.nn.Module]) -> None:
    windows = torch.full((40, 10), 7)
    windows[23] = torch.arange(50, 60)
    sampler = entry("sampler", "sensitivity", p=2.0, ridge=1e-6)
    taken = sampler.select(windows, 4, model, seeded())
    assert any(torch.equal(one, windows[23]) for one in taken)
