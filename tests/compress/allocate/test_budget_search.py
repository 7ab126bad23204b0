"""The pass over a model, the true divergence, slopes and the refinement, on a tiny model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from compress.allocate.allocation_recipe import allocation_recipe
from compress.allocate.candidate_losses import candidate_losses, losses_of
from compress.allocate.candidates import DENSE
from compress.allocate.divergence import DivergenceMeter
from compress.allocate.problem import BudgetProblem, group_of, near
from compress.allocate.refine import refine
from compress.allocate.slopes import measured_losses, measured_slopes
from compress.allocate.trial_weights import TrialWeights
from compress.allocate.units import Unit, find_units
from compress.checkpoint.source import open_source
from compress.models.skeleton import Skeleton, open_skeleton
from compress.planning.make import facts_of, make_plan
from compress.recipe.runtimes import RUNTIMES

CPU = torch.device("cpu")
OPTIONS: dict[str, Any] = {"device": CPU, "dtype": torch.float32}


def token_ids(seed: int, samples: int = 4) -> Tensor:
    return torch.randint(2, 256, (samples, 32), generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Passed:
    """A tiny model after its pass."""

    folder: Path
    skeleton: Skeleton
    units: tuple[Unit, ...]
    trials: TrialWeights
    losses: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def meter(self, tokens: Tensor) -> DivergenceMeter:
        return DivergenceMeter(self.skeleton, self.trials, tokens, CPU, torch.float32, self.trials.folder)


@pytest.fixture(scope="module")
def passed(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Passed:
    folder = tiny_model("llama", initializer_range=0.2)
    skeleton = open_skeleton(open_source(folder))
    units = find_units(skeleton, RUNTIMES["native"], facts_of(skeleton))
    work = tmp_path_factory.mktemp("trials")
    trials = candidate_losses(skeleton, units, token_ids(0, 16), seed=0, folder=work, **OPTIONS)
    return Passed(folder, skeleton, units, trials, losses_of(trials, len(skeleton.blocks)))


def inside(passed: Passed, start: str) -> dict[str, str]:
    """Every unit in the blocks on its first candidate whose label begins so."""
    return {
        unit.name: next(c.label for c in unit.choices if c.label.startswith(start))
        for unit in passed.units
        if unit.block is not None
    }


def test_fewer_bits_lose_more_in_every_unit(passed: Passed) -> None:
    for losses in passed.losses.values():
        assert losses[DENSE] == 0
        assert losses["int2-g32"] > losses["int3-g32"] > losses["int4-g32"] > 0


def test_factors_are_a_candidate_of_weights_whose_inputs_are_known(passed: Passed) -> None:
    for unit in passed.units:
        labels = [choice.label for choice in unit.choices]
        assert ("rank50-int4" in labels) is (unit.block is not None)
    allocation = inside(passed, "rank50")
    decode = passed.trials.decoder(allocation)
    for name, label in allocation.items():
        weight = decode(name)
        assert weight is not None
        assert int(torch.linalg.matrix_rank(weight)) <= min(weight.shape) // 2
        assert 0 < passed.losses[name][label] < passed.losses[name]["int2-g32"] * 100


def test_the_divergence_is_that_of_the_model_with_these_weights(passed: Passed) -> None:
    allocation = {**inside(passed, "int3"), "model.embed_tokens": "int4-g32", "lm_head": "int4-g32"}
    tokens = token_ids(1)
    model = AutoModelForCausalLM.from_pretrained(passed.folder, dtype=torch.float32).eval()
    with torch.no_grad():
        dense = model(tokens).logits.double().log_softmax(-1)
        decode = passed.trials.decoder(allocation)
        for view in passed.skeleton.views:
            weight = decode(view.name)
            if weight is not None:
                view.put(model.get_parameter(view.parameter), weight)
        changed = model(tokens).logits.double().log_softmax(-1)
    kl = (dense.exp() * (dense - changed)).sum(-1).mean(1)
    assert torch.allclose(
        torch.tensor(passed.meter(tokens).by_window(allocation)).double(), kl, rtol=1e-3, atol=1e-7
    )
    assert float(kl.mean()) > 1e-4


def test_the_dense_model_has_no_divergence_and_is_not_changed_by_measuring(passed: Passed) -> None:
    meter = passed.meter(token_ids(1))
    meter.mean(inside(passed, "int2"))
    assert meter.mean({}) == pytest.approx(0, abs=1e-9)
    assert meter.measured == 2
    meter.mean({})
    assert meter.measured == 2


def test_predictions_follow_the_true_divergence(passed: Passed) -> None:
    meter = passed.meter(token_ids(2))
    predicted, measured = [], []
    for start in ("int2", "int3", "int4", "int5"):
        allocation = inside(passed, start)
        predicted.append(sum(passed.losses[name][label] for name, label in allocation.items()))
        measured.append(meter.mean(allocation))
    assert predicted == sorted(predicted, reverse=True)
    assert measured == sorted(measured, reverse=True)
    # A second-order expansion: near at small errors, within a factor of three at large ones.
    assert all(1 / 3 < a / b < 3 for a, b in zip(predicted, measured, strict=True)), (predicted, measured)


def test_an_interrupted_pass_takes_over_the_blocks_that_are_done(passed: Passed, tmp_path: Path) -> None:
    for block in (None, 0, 1):
        content = passed.trials.path(block).read_bytes()
        (tmp_path / passed.trials.path(block).name).write_bytes(content)
    passed.trials.path(0).with_name("unrelated").write_text("x")
    again = candidate_losses(passed.skeleton, passed.units, token_ids(9), seed=0, folder=tmp_path, **OPTIONS)
    assert losses_of(again, 2) == passed.losses  # other tokens would give other losses


def problem_of(passed: Passed) -> BudgetProblem:
    meter = passed.meter(token_ids(3))
    outside = [unit for unit in passed.units if unit.block is None]
    return BudgetProblem(passed.units, {**passed.losses, **measured_losses(meter, outside)}, 0, 2)


def test_slopes_make_predictions_of_probes_true(passed: Passed) -> None:
    problem, meter = problem_of(passed), passed.meter(token_ids(3))
    slopes = measured_slopes(meter, problem, 3.0)
    corrected = replace(problem, slopes=slopes)
    group = group_of(passed.units[1], 2)
    units = [unit for unit in passed.units if group_of(unit, 2) == group]
    probe = {unit.name: near(unit, 3.0) for unit in units}
    predicted = sum(corrected.loss_of(unit, probe[unit.name]) for unit in units)
    assert predicted == pytest.approx(meter.mean(probe), rel=1e-6)


def test_an_allocation_keeps_within_its_budget_and_beats_a_uniform_one(passed: Passed) -> None:
    problem = problem_of(passed)
    uniform = {**inside(passed, "int3"), "model.embed_tokens": "int3-g64", "lm_head": "int3-g64"}
    allocation = problem.solve(problem.nbytes(uniform))
    assert problem.nbytes(allocation) <= problem.nbytes(uniform)
    assert problem.predicted(allocation) < problem.predicted(uniform)


@dataclass
class FalseMeter:
    """A divergence that rewards bits in the last block alone, whatever is predicted."""

    units: tuple[Unit, ...]
    measured: list[float] = field(default_factory=list)

    def by_window(self, allocation: Mapping[str, str]) -> list[float]:
        total = sum(unit.choice(allocation[unit.name]).nbytes for unit in self.units if unit.block == 1)
        self.measured.append(1e6 / total)
        return [1e6 / total] * 3


def test_refinement_follows_the_measured_divergence_and_never_accepts_worse(passed: Passed) -> None:
    problem = problem_of(passed)
    budget = problem.smallest * 3 // 2
    meter: Any = FalseMeter(passed.units)
    found = refine(meter, problem, budget, trials=20, seed=0)
    assert found.divergence == min(meter.measured) < found.begun_at
    assert found.tried == 20
    assert found.accepted > 0
    assert problem.nbytes(found.allocation) <= budget
    assert meter.by_window(found.allocation)[0] == found.divergence


def test_without_trials_the_knapsack_stands(passed: Passed) -> None:
    problem = problem_of(passed)
    meter: Any = FalseMeter(passed.units)
    found = refine(meter, problem, problem.smallest * 2, trials=0, seed=0)
    assert found.allocation == problem.solve(problem.smallest * 2)
    assert found.divergence == found.begun_at


def test_the_recipe_of_an_allocation_plans_its_layouts(passed: Passed) -> None:
    allocation = problem_of(passed).solve(problem_of(passed).smallest * 3 // 2)
    views = passed.skeleton.views
    options: dict[str, Any] = {"name": "found", "when": "", "calibrate": {"samples": 4}, "views": views}
    recipe = allocation_recipe(passed.units, allocation, RUNTIMES["native"], **options)
    assert recipe is not None
    planned = {weight.name: weight.layout for weight in make_plan(passed.skeleton, recipe).weights}
    for unit in passed.units:
        for weight in unit.choice(allocation[unit.name]).weights:
            assert planned.pop(weight.name) == weight.layout
    assert not planned
    dense = {unit.name: DENSE for unit in passed.units}
    assert allocation_recipe(passed.units, dense, RUNTIMES["native"], **options) is None


def test_a_pattern_names_the_many_experts_of_a_unit(tiny_model: Callable[..., Path]) -> None:
    skeleton = open_skeleton(open_source(tiny_model("mixtral", num_local_experts=8)))
    units = find_units(skeleton, RUNTIMES["native"], facts_of(skeleton))
    allocation = {unit.name: unit.choices[0].label for unit in units}
    options: dict[str, Any] = {"name": "found", "when": "", "calibrate": {}, "views": skeleton.views}
    recipe = allocation_recipe(units, allocation, RUNTIMES["native"], **options)
    assert recipe is not None
    patterns = [target for step in recipe.steps for target in step.targets if target.startswith("re:")]
    assert len(patterns) == 2
    assert len(make_plan(skeleton, recipe).weights) == sum(len(unit.views) for unit in units)
