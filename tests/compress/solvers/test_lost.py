"""LOST: the joint optimum of its columns and factors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compress.linalg.weighted_svd import decompose
from compress.pipeline.weight import solve_weight
from compress.planning.methods import methods_of
from compress.recipe.sections import Step
from compress.score.metric import Kron, Side
from compress.score.statistics import Statistics
from compress.structures.low_rank.sums import refit_columns


def test_lost_is_the_joint_optimum_of_its_columns(
    observed_weight: Tensor, observed: Statistics, solve_step: Any
) -> None:
    """Alternating refits from the closed form gain nothing."""
    step = Step.model_validate({"lowrank": {"ratio": 0.6, "columns": 0.05}, "solver": "lost"})
    methods = methods_of(step, torch.float32)
    metric = Kron(right=Side(observed.gram))
    attempt = solve_weight(methods, observed_weight, observed, metric, 0)
    parameters: Any = attempt.solution.parameters
    index, rank = parameters.residual.index, parameters.factors.left.values.shape[1]
    theta = attempt.solution.theta
    columns = parameters.values
    for _ in range(30):
        parts = decompose(observed_weight - columns, metric)
        low = (parts.left[:, :rank] @ parts.right[:rank]).float()
        columns = torch.zeros_like(observed_weight)
        columns[:, index] = refit_columns(observed_weight - low, index, metric).float()
    assert metric.loss(observed_weight - theta) <= metric.loss(observed_weight - low - columns) * 1.0001


def test_lost_gains_by_outlier_columns(observed: Statistics, solve_step: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(64, 8, generator=generator) @ torch.randn(8, 96, generator=generator) / 8
    weight[:, [7, 50]] += torch.randn(64, 2, generator=generator)
    weight += 0.01 * torch.randn(64, 96, generator=generator)
    low, _, _ = solve_step(weight, observed, lowrank={"ratio": 0.25}, solver="weighted_svd")
    both, theta, _ = solve_step(weight, observed, lowrank={"ratio": 0.28, "columns": 0.025}, solver="lost")
    assert both < low
