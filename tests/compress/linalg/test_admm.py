"""ADMM masks against a linear solve at each step in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress.linalg.admm import PAPER, QUICK, Penalties, split
from compress.linalg.conjugate_gradient import refit
from compress.linalg.factor_cache import FactorCache
from compress.score.metric import Kron, Side
from compress.structures.base import SparsityPattern
from compress.structures.sparse.patterns import NM, Unstructured


def slow_admm(weight: Tensor, gram: Tensor, pattern: SparsityPattern, steps: int) -> Tensor:
    """ADMM with a linear solve each time, in float64."""
    root = gram.double().diagonal().sqrt()
    normalised = gram.double() / root / root.unsqueeze(1)
    target = weight.double() * root
    point, dual, penalty = target, torch.zeros_like(target), 0.1
    before = pattern.choose(target.square().float())
    for step in range(1, steps + 1):
        left = normalised + penalty * torch.eye(len(root), dtype=torch.float64)
        free = torch.linalg.solve(left, (target @ normalised - dual + penalty * point).T).T
        mask = pattern.choose((free + dual / penalty).square().float())
        point = (free + dual / penalty) * mask
        dual = dual + penalty * (free - point)
        if step % 3 == 0:
            changed = int((mask & ~before).sum()) / int(mask.sum())
            if changed == 0:
                break
            penalty *= 1.3 if changed > 0.1 else 1.2 if changed > 0.005 else 1.1
            before = mask
    return mask


@pytest.mark.parametrize("pattern", [Unstructured(0.5), Unstructured(0.7, "layer"), NM(2, 4)], ids=str)
def test_the_mask_is_that_of_plain_admm(pattern: SparsityPattern) -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(256, 64, generator=generator) @ (
        torch.eye(64) + 0.3 * torch.randn(64, 64, generator=generator) / 8
    )
    inputs[:, ::16] *= 20
    weight, gram = 0.05 * torch.randn(24, 64, generator=generator), inputs.T @ inputs / 256
    found = split(weight, Kron(right=Side(gram)), pattern.choose, 60, FactorCache()).mask
    reference = slow_admm(weight, gram, pattern, 60)
    # A tie in the last bit may fall either way.
    assert int((found != reference).sum()) <= 4


def best_values(weight: Tensor, mask: Tensor, metric: Kron) -> Tensor:
    """The best values on a mask, by one dense solve in float64."""
    assert metric.left.matrix is not None
    assert metric.right.matrix is not None
    whole = torch.kron(metric.left.matrix.double(), metric.right.matrix.double())
    free = mask.flatten()
    goal = (whole @ weight.double().flatten())[free]
    values = torch.zeros(weight.numel(), dtype=torch.float64)
    values[free] = torch.linalg.solve(whole[free][:, free], goal)
    return values.view(weight.shape).float()


def test_both_sides_of_the_metric_count() -> None:
    """The mask found with the left side costs less than the one found without."""
    generator = torch.Generator().manual_seed(1)
    weight = 0.05 * torch.randn(32, 48, generator=generator)
    inputs = torch.randn(256, 48, generator=generator) @ (
        torch.eye(48) + 0.3 * torch.randn(48, 48, generator=generator) / 7
    )
    inputs[:, ::16] *= 20
    gradients = torch.randn(128, 32, generator=generator) @ (
        torch.eye(32) + 0.5 * torch.randn(32, 32, generator=generator) / 32**0.5
    )
    metric = Kron(Side(gradients.T @ gradients / 128), Side(inputs.T @ inputs / 256))
    choose = Unstructured(0.6, "layer").choose
    costs = []
    for given in (metric, Kron(right=metric.right)):
        mask = split(weight, given, choose, 300, FactorCache()).mask
        costs.append(metric.loss(weight - best_values(weight, mask, metric)))
    assert costs[0] < 0.98 * costs[1]


@pytest.mark.parametrize("penalties", [PAPER, QUICK], ids=["paper", "quick"])
def test_the_values_are_nearly_the_best_on_the_mask(penalties: Penalties) -> None:
    """Inputs that never come, and some that hardly do, get no values out of noise."""
    generator = torch.Generator().manual_seed(3)
    weight = 0.05 * torch.randn(24, 64, generator=generator)
    inputs = torch.randn(256, 64, generator=generator)
    inputs[:, 5], inputs[:, 9] = 0, 1e-9 * inputs[:, 9]
    gradients = torch.randn(128, 24, generator=generator)
    gradients[:, 3] = 0
    metric = Kron(Side(gradients.T @ gradients / 128), Side(inputs.T @ inputs / 256))
    found = split(weight, metric, Unstructured(0.5).choose, 300, FactorCache(), penalties)
    assert not bool(found.values[~found.mask].any())
    assert float(found.values.abs().max()) < 1
    best = refit(weight, found.mask, metric, weight, steps=500)
    assert metric.loss(weight - found.values) < 1.01 * metric.loss(weight - best)


def test_quick_penalties_cost_little_and_settle_sooner() -> None:
    generator = torch.Generator().manual_seed(4)
    weight = 0.05 * torch.randn(64, 96, generator=generator)
    inputs = torch.randn(512, 96, generator=generator) @ (
        torch.eye(96) + 0.5 * torch.randn(96, 96, generator=generator) / 96**0.5
    )
    metric, pattern, steps, losses = Kron(right=Side(inputs.T @ inputs / 512)), Unstructured(0.5), [], []
    for penalties in (PAPER, QUICK):
        asked: list[Tensor] = []

        def choose(importance: Tensor, asked: list[Tensor] = asked) -> Tensor:
            asked.append(importance)
            return pattern.choose(importance)

        found = split(weight, metric, choose, 300, FactorCache(), penalties)
        steps.append(len(asked))
        losses.append(metric.loss(weight - found.values))
    assert steps[1] < steps[0]
    assert losses[1] < 1.02 * losses[0]
    largest = float(torch.linalg.eigvalsh(_normalised(metric)).max())
    assert found.largest == pytest.approx(largest, rel=1e-4)


def _normalised(metric: Kron) -> Tensor:
    assert metric.right.matrix is not None
    root = metric.right.matrix.diagonal().sqrt()
    return metric.right.matrix / root / root.unsqueeze(1)
