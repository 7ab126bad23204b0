"""Neurons over the blocks: the budget is kept, the choice is that of the losses, which are those of independent sums."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.calibrate import gradient_store
from compress.calibrate.gradient_store import gradient_moments
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.models.skeleton import Skeleton, open_skeleton
from compress.prune import neuron_budget
from compress.prune.neuron_budget import SCORE, counts_by_loss, rooted
from compress.prune.units import Part, neurons

CPU = torch.device("cpu")


def token_ids() -> Tensor:
    return torch.randint(2, 256, (4, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def skeleton(tiny_model: Callable[..., Path]) -> Skeleton:
    return open_skeleton(open_source(tiny_model("llama", num_hidden_layers=3, initializer_range=0.1)))


def moments_of(skeleton: Skeleton, part: Part, folder: Path) -> dict[int, Any]:
    folder.mkdir()
    needs = {view.name: SCORE.needs - {"gram"} for view in part.readers.values()}
    with gradient_moments(skeleton, token_ids(), needs, device=CPU, seed=0, folder=folder) as blocks:
        return {index: moments[part.readers[index].name] for index, moments in blocks}


def weight_of(skeleton: Skeleton, part: Part, index: int) -> Tensor:
    skeleton.load_block(index, device="cpu", dtype=torch.float32)
    view = part.readers[index]
    weight = view.get(skeleton.parameter_of(view).detach()).float().clone()
    skeleton.release_block(index)
    return weight


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_the_budget_is_kept(skeleton: Skeleton, tmp_path: Path, share: float) -> None:
    part = neurons(skeleton, share)
    counts = counts_by_loss(
        skeleton, part, token_ids(), device="cpu", dtype=torch.float32, seed=0, folder=tmp_path
    )
    assert sorted(counts) == [0, 1, 2]
    assert sum(counts.values()) <= 3 * part.kept
    assert sum(counts.values()) > 3 * part.kept - 3 * part.step
    assert all(count % part.step == 0 and part.step <= count <= part.total for count in counts.values())
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())


def test_the_least_sum_of_losses(skeleton: Skeleton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against all combinations of the counts that were tried, for losses that are convex."""
    factors = {0: 1.0, 1: 8.0, 2: 0.2}
    curves: dict[int, Any] = {}
    curve_of = neuron_budget._curve

    def scaled(part: Part, weight: Tensor, gram: Tensor) -> Any:
        index = 2 - len(curves)  # blocks come from the last to the first
        curves[index] = curve_of(part, weight * factors[index] ** 0.5, gram)
        return curves[index]

    monkeypatch.setattr(neuron_budget, "_curve", scaled)
    part = neurons(skeleton, 0.5)
    counts = counts_by_loss(
        skeleton, part, token_ids(), device="cpu", dtype=torch.float32, seed=0, folder=tmp_path
    )
    options = {i: {o.choice.rank: o.loss for o in curve.options} for i, curve in curves.items()}
    assert counts[1] > counts[0] >= counts[2]
    best = min(
        sum(options[i][count] for i, count in enumerate(chosen))
        for chosen in itertools.product(*(options[i] for i in range(3)))
        if sum(chosen) <= 3 * part.kept
    )
    assert sum(options[i][count] for i, count in counts.items()) <= 1.05 * best


def test_the_metric_is_read_back(skeleton: Skeleton, tmp_path: Path) -> None:
    part = neurons(skeleton, 0.5)
    statistics = moments_of(skeleton, part, tmp_path / "moments")[1]
    weight = weight_of(skeleton, part, 1)
    scaled = rooted(part.readers[1], weight, tmp_path / "moments").double()
    left = SCORE.metric(statistics).left.matrix
    assert left is not None
    torch.testing.assert_close(
        scaled.T @ scaled, weight.double().T @ left.double() @ weight.double(), rtol=1e-4, atol=1e-8
    )


def test_a_block_without_gradients_is_refused(
    skeleton: Skeleton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*args: Any) -> Any:
        return {
            index: replace(statistics, output_gradient_gram=torch.zeros_like(statistics.output_gradient_gram))
            for index, statistics in real(*args).items()
        }

    real = gradient_store.gradient_statistics
    monkeypatch.setattr(gradient_store, "gradient_statistics", none)
    with pytest.raises(UserError, match=r"no gradient reaches model\.layers\.2\.mlp\.down_proj"):
        counts_by_loss(
            skeleton,
            neurons(skeleton, 0.5),
            token_ids(),
            device="cpu",
            dtype=torch.float32,
            seed=0,
            folder=tmp_path,
        )
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
