"""Low-rank solvers in their metric: closed forms against search, sums against their parts alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.linalg.weighted_svd import take_apart
from compress.pipeline.weight import solve_weight
from compress.planning.methods import methods_of, with_choice
from compress.recipe.sections import Step
from compress.score.metric import Kron, Side
from compress.score.statistics import Statistics
from compress.solvers.base import Problem
from compress.structures.low_rank.sums import refit_columns


@pytest.fixture(scope="module")
def seen() -> Statistics:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 96, generator=generator) @ torch.randn(96, 96, generator=generator)
    x[:, 5] *= 20
    gram = x.T @ x / len(x)
    g = torch.randn(64, 64, generator=generator)
    left = g @ g.T / 64
    return Statistics(
        tokens=600,
        gram=gram,
        diagonal=gram.diagonal(),
        mean_abs=x.abs().mean(0),
        gradient_rows=left.diagonal(),
        output_gradient_gram=left,
        dense_gram=gram,
    )


@pytest.fixture(scope="module")
def weight() -> Tensor:
    return torch.randn(64, 96, generator=torch.Generator().manual_seed(1))


def solve(weight: Tensor, seen: Statistics, **step: Any) -> tuple[float, Tensor, dict[str, Any]]:
    """The error in the inputs' metric, the weight and the record."""
    methods = methods_of(Step.model_validate(step), torch.bfloat16)
    attempt = solve_weight(methods, weight, seen, methods.score.metric(seen), 0)
    packed = attempt.pack().packed
    theta = packed.dense(torch.float32)
    torch.testing.assert_close(theta, attempt.solution.theta, rtol=0, atol=1e-5)
    assert seen.gram is not None
    delta = weight - theta
    error = float((delta @ seen.gram * delta).sum() / (weight @ seen.gram * weight).sum())
    return error, theta, attempt.record


def test_whitening_beats_every_other_truncation_in_its_metric(weight: Tensor, seen: Statistics) -> None:
    errors = {
        score: solve(weight, seen, lowrank={"ratio": 0.6}, score=score, solver="weighted_svd")[0]
        for score in ("magnitude", "input-scale", "fisher-rows", "fisher", "activation")
    }
    assert min(errors, key=lambda score: errors[score]) == "activation"
    assert errors["activation"] < 0.8 * errors["magnitude"]


def test_the_report_is_told_the_spectrum(weight: Tensor, seen: Statistics) -> None:
    error, theta, record = solve(weight, seen, lowrank={"ratio": 0.6}, solver="weighted_svd")
    info = record["info"]
    assert int(info["rank"]) == int(torch.linalg.matrix_rank(theta, rtol=1e-3)) == 16
    assert info["lost"] == pytest.approx(error, rel=1e-2)
    values = [float(word) for word in info["spectrum"].split()]
    assert values == sorted(values, reverse=True)
    assert values[0] == 1


def test_rounds_make_up_for_a_coarse_grid(weight: Tensor, seen: Statistics) -> None:
    settings = {"ratio": 0.6, "bits": 3}
    once, _, _ = solve(weight, seen, lowrank=settings, solver="weighted_svd")
    again, _, _ = solve(weight, seen, lowrank=settings, solver={"name": "weighted_svd", "rounds": 10})
    assert again < once


def test_lost_is_the_joint_optimum_of_its_columns(weight: Tensor, seen: Statistics) -> None:
    """Alternating refits from the closed form gain nothing."""
    step = Step.model_validate({"lowrank": {"ratio": 0.6, "columns": 0.05}, "solver": "lost"})
    methods = methods_of(step, torch.float32)
    metric = Kron(right=Side(seen.gram))
    attempt = solve_weight(methods, weight, seen, metric, 0)
    parameters: Any = attempt.solution.parameters
    index, rank = parameters.residual.index, parameters.factors.left.values.shape[1]
    theta = attempt.solution.theta
    columns = parameters.values
    for _ in range(30):
        parts = take_apart(weight - columns, metric)
        low = (parts.left[:, :rank] @ parts.right[:rank]).float()
        columns = torch.zeros_like(weight)
        columns[:, index] = refit_columns(weight - low, index, metric).float()
    assert metric.loss(weight - theta) <= metric.loss(weight - low - columns) * 1.0001


def test_lost_gains_by_outlier_columns(seen: Statistics) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(64, 8, generator=generator) @ torch.randn(8, 96, generator=generator) / 8
    weight[:, [7, 50]] += torch.randn(64, 2, generator=generator)
    weight += 0.01 * torch.randn(64, 96, generator=generator)
    low, _, _ = solve(weight, seen, lowrank={"ratio": 0.25}, solver="weighted_svd")
    both, theta, _ = solve(weight, seen, lowrank={"ratio": 0.28, "columns": 0.025}, solver="lost")
    assert both < low


def test_oats_beats_either_part_alone(weight: Tensor, seen: Statistics) -> None:
    together, _, record = solve(
        weight, seen, lowrank={"ratio": 0.25}, prune={"sparsity": 0.55}, solver={"name": "oats", "rounds": 20}
    )
    low, _, _ = solve(weight, seen, lowrank={"ratio": 0.75}, solver="weighted_svd")
    assert together < low
    assert record["error"] <= record["error_nearest"]


@pytest.mark.parametrize("bits", [3, 2])
@pytest.mark.parametrize("settings", [{"rank": 8}, {"rank": 8, "bits": 8}])
def test_eora_reduces_the_error(
    weight: Tensor, seen: Statistics, bits: int, settings: dict[str, Any]
) -> None:
    quantize = {"bits": bits, "group_size": 32, "symmetric": False}
    alone, _, _ = solve(weight, seen, quantize=quantize, solver="gptq")
    error, _, record = solve(weight, seen, quantize=quantize, lowrank=settings, solver=["gptq", "eora"])
    assert error < 0.9 * alone
    assert record["info"]["uncompensated"] == pytest.approx(alone, rel=0.05)


def test_an_expert_without_tokens_is_truncated_all_the_same(weight: Tensor) -> None:
    nothing = Statistics(tokens=0, gram=torch.zeros(96, 96), diagonal=torch.zeros(96))
    methods = methods_of(
        Step.model_validate({"lowrank": {"ratio": 0.6}, "solver": "weighted_svd"}), torch.bfloat16
    )
    attempt = solve_weight(methods, weight, nothing, methods.score.metric(nothing), 0)
    assert 0 < attempt.record["error"] < 1
    assert attempt.record["fallback"] is not None


@pytest.mark.parametrize(
    "step",
    [
        {"lowrank": {"ratio": 0.6}, "solver": "weighted_svd"},
        {"lowrank": {"ratio": 0.6, "columns": 0.05}, "solver": "lost"},
        {"lowrank": {"ratio": 0.2}, "prune": {"sparsity": 0.6}, "solver": {"name": "oats", "rounds": 20}},
        {"lowrank": {"ratio": 0.2}, "prune": {"pattern": "1:4"}, "solver": {"name": "oats", "rounds": 20}},
    ],
    ids=["weighted_svd", "lost", "oats", "oats of a pattern"],
)
def test_options_lose_what_they_say(weight: Tensor, seen: Statistics, step: dict[str, Any]) -> None:
    methods = methods_of(Step.model_validate(step), torch.float32)
    metric, solver = methods.score.metric(seen), methods.solvers[-1]
    problem = Problem(weight, methods.structure, metric, seen)
    options = solver.options(problem)  # type: ignore[attr-defined]
    assert {option.choice.columns for option in options} >= ({0, 3} if "columns" in str(step) else {None})
    for option in options[:: max(1, len(options) // 6)]:
        chosen = with_choice(methods, option.choice)
        packed = solve_weight(chosen, weight, seen, metric, 0).pack().packed
        loss = metric.loss(weight - packed.dense(torch.float32))
        assert packed.nbytes == option.nbytes
        assert loss <= 1.25 * option.loss + 1e-6 * metric.loss(weight), option


def test_a_singular_fisher_is_told(weight: Tensor, seen: Statistics) -> None:
    assert seen.output_gradient_gram is not None
    step = {"lowrank": {"ratio": 0.6}, "score": {"name": "fisher", "damping": 0}, "solver": "weighted_svd"}
    flat = torch.zeros_like(seen.output_gradient_gram)
    flat[0, 0] = 1.0
    _, theta, record = solve(weight, replace(seen, output_gradient_gram=flat), **step)
    assert torch.isfinite(theta).all()
    assert "63 of 64 directions" in record["info"]["singular"]
    _, theta, record = solve(weight, replace(seen, output_gradient_gram=torch.zeros_like(flat)), **step)
    assert record["fallback"] == "no gradient reached it: only its inputs counted"
    plain = solve(weight, seen, lowrank={"ratio": 0.6}, solver="weighted_svd")[1]
    torch.testing.assert_close(theta, plain)
