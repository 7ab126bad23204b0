"""Weighted SVD: truncations in their metrics, what a report says of them, options and grids."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.pipeline.weight import solve_weight
from compress.planning.methods import methods_of, with_choice
from compress.recipe.sections import Step
from compress.score.statistics import Statistics
from compress.solvers.base import Problem


def test_whitening_beats_every_other_truncation_in_its_metric(
    observed_weight: Tensor, observed: Statistics, solve_step: Any
) -> None:
    errors = {
        score: solve_step(
            observed_weight, observed, lowrank={"ratio": 0.6}, score=score, solver="weighted_svd"
        )[0]
        for score in ("magnitude", "input-scale", "fisher-rows", "fisher", "activation")
    }
    assert min(errors, key=lambda score: errors[score]) == "activation"
    assert errors["activation"] < 0.8 * errors["magnitude"]


def test_the_report_is_told_the_spectrum(
    observed_weight: Tensor, observed: Statistics, solve_step: Any
) -> None:
    error, theta, record = solve_step(
        observed_weight, observed, lowrank={"ratio": 0.6}, solver="weighted_svd"
    )
    info = record["info"]
    assert int(info["rank"]) == int(torch.linalg.matrix_rank(theta, rtol=1e-3)) == 16
    assert info["lost"] == pytest.approx(error, rel=1e-2)
    values = [float(word) for word in info["spectrum"].split()]
    assert values == sorted(values, reverse=True)
    assert values[0] == 1


def test_rounds_make_up_for_a_coarse_grid(
    observed_weight: Tensor, observed: Statistics, solve_step: Any
) -> None:
    settings = {"ratio": 0.6, "bits": 3}
    once, _, _ = solve_step(observed_weight, observed, lowrank=settings, solver="weighted_svd")
    again, _, _ = solve_step(
        observed_weight, observed, lowrank=settings, solver={"name": "weighted_svd", "rounds": 10}
    )
    assert again < once


def test_an_expert_without_tokens_is_truncated_all_the_same(observed_weight: Tensor) -> None:
    nothing = Statistics(tokens=0, gram=torch.zeros(96, 96), diagonal=torch.zeros(96))
    methods = methods_of(
        Step.model_validate({"lowrank": {"ratio": 0.6}, "solver": "weighted_svd"}), torch.bfloat16
    )
    attempt = solve_weight(methods, observed_weight, nothing, methods.score.metric(nothing), 0)
    assert 0 < attempt.record["error"] < 1
    assert attempt.record["fallback"] is not None


def test_a_singular_fisher_is_told(observed_weight: Tensor, observed: Statistics, solve_step: Any) -> None:
    assert observed.output_gradient_gram is not None
    step = {"lowrank": {"ratio": 0.6}, "score": {"name": "fisher", "damping": 0}, "solver": "weighted_svd"}
    flat = torch.zeros_like(observed.output_gradient_gram)
    flat[0, 0] = 1.0
    _, theta, record = solve_step(observed_weight, replace(observed, output_gradient_gram=flat), **step)
    assert torch.isfinite(theta).all()
    assert "63 of 64 directions" in record["info"]["singular"]
    _, theta, record = solve_step(
        observed_weight, replace(observed, output_gradient_gram=torch.zeros_like(flat)), **step
    )
    assert record["fallback"] == "no gradient reached it: only its inputs counted"
    plain = solve_step(observed_weight, observed, lowrank={"ratio": 0.6}, solver="weighted_svd")[1]
    torch.testing.assert_close(theta, plain)


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
def test_options_lose_what_they_say(
    observed_weight: Tensor, observed: Statistics, solve_step: Any, step: dict[str, Any]
) -> None:
    methods = methods_of(Step.model_validate(step), torch.float32)
    metric, solver = methods.score.metric(observed), methods.solvers[-1]
    problem = Problem(observed_weight, methods.structure, metric, observed)
    options = solver.options(problem)  # type: ignore[attr-defined]
    assert {option.choice.columns for option in options} >= ({0, 3} if "columns" in str(step) else {None})
    for option in options[:: max(1, len(options) // 6)]:
        chosen = with_choice(methods, option.choice)
        packed = solve_weight(chosen, observed_weight, observed, metric, 0).pack().packed
        loss = metric.loss(observed_weight - packed.dense(torch.float32))
        assert packed.nbytes == option.nbytes
        assert loss <= 1.25 * option.loss + 1e-6 * metric.loss(observed_weight), option
