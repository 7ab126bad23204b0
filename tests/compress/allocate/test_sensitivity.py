"""The sensitivity pass: when it is needed, the ranks and sparsities that it chooses, and what solving reads of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.allocate import sensitivity as module
from compress.allocate.sensitivity import (
    Sensitivity,
    chooses_sizes,
    input_needs,
    needs_sensitivity_pass,
    sensitivity_pass,
)
from compress.allocate.sparsities import allocate_sparsities, importances
from compress.calibrate.walk import walk_blocks
from compress.checkpoint.source import open_source
from compress.models.skeleton import Skeleton, open_skeleton
from compress.planning.make import make_plan
from compress.planning.plan import Plan
from compress.recipe.recipe import Recipe
from compress.score.statistics import Statistics

CPU = torch.device("cpu")
ATTENTION, FFN = ["re:.*self_attn.*"], ["re:.*mlp.*"]
GPTQ = {"quantize": {"bits": 4, "group_size": 32}, "solver": "gptq"}
RANKS = {"lowrank": {"ratio": 0.6, "allocate": "truncation"}, "solver": "weighted_svd", "score": "activation"}
OWL = {"prune": {"sparsity": 0.5, "allocate": "owl"}, "solver": "wanda"}


def ranks(rule: str) -> dict[str, Any]:
    return {**RANKS, "lowrank": {"ratio": 0.6, "allocate": rule}}


@pytest.fixture
def skeleton(tiny_model: Callable[..., Path]) -> Skeleton:
    return open_skeleton(open_source(tiny_model("llama", initializer_range=0.1)))


def token_ids() -> Tensor:
    return torch.randint(2, 256, (4, 24), generator=torch.Generator().manual_seed(0))


def plan_of(skeleton: Skeleton, *steps: dict[str, Any]) -> Plan:
    return make_plan(skeleton, Recipe.parse({"name": "test", "steps": list(steps)}), dtype=torch.float32)


def run(skeleton: Skeleton, plan: Plan, folder: Path) -> Sensitivity:
    folder.mkdir(exist_ok=True)
    return sensitivity_pass(
        skeleton, plan, token_ids(), device=CPU, dtype=torch.float32, seed=0, folder=folder
    )


NEEDED: dict[str, tuple[dict[str, Any], bool, bool]] = {
    "gptq": (GPTQ, False, False),
    "uniform ranks": (ranks("uniform"), False, False),
    "uniform sparsity": ({"prune": {"sparsity": 0.5}, "solver": "wanda"}, False, False),
    "ranks": (RANKS, True, True),
    "ranks by gradients": (ranks("fisher"), True, True),
    "sparsities": (OWL, True, True),
    "one threshold": ({"prune": {"sparsity": 0.5, "scope": "global"}, "solver": "wanda"}, True, True),
    "gradients while solving": ({**GPTQ, "score": "fisher"}, False, True),
}


@pytest.mark.parametrize("case", NEEDED)
def test_when_it_is_needed(case: str, skeleton: Skeleton) -> None:
    step, sizes, needed = NEEDED[case]
    plan = plan_of(skeleton, step)
    assert chooses_sizes(plan) == sizes
    assert needs_sensitivity_pass(plan) == needed


def test_solving_does_not_gather_gradients(skeleton: Skeleton) -> None:
    plan = plan_of(skeleton, {**GPTQ, "score": "fisher"})
    assert all("gram" in needs for needs in input_needs(plan).values())
    assert not any("output_gradients" in needs for needs in input_needs(plan).values())
    assert all("output_gradients" in needs for needs in plan.needs.values())


@pytest.mark.parametrize("rule", ["split", "energy", "truncation", "fisher"])
def test_ranks_within_the_budget(rule: str, skeleton: Skeleton, tmp_path: Path) -> None:
    plan = plan_of(skeleton, ranks(rule))
    chosen = run(skeleton, plan, tmp_path)
    inside = [weight for weight in plan.weights if weight.view.block is not None]
    assert sorted(chosen.ranks) == sorted(weight.name for weight in inside)
    again = make_plan(skeleton, plan.recipe, dtype=torch.float32, ranks=chosen.ranks)
    # The budget is the ratio's, from which uniform ranks are rounded down.
    spare = 0.6 * sum(2 * weight.numel for weight in plan.weights) - plan.weight_bytes
    header = 1024
    assert again.total_bytes <= plan.total_bytes + spare + header
    figures = chosen.figures["ranks"]
    assert sorted(figures) == sorted(chosen.ranks)
    assert len({choice.rank for choice in chosen.ranks.values() if choice is not None}) > 1
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())


def test_sparsities_are_those_of_wanda_s_importances(skeleton: Skeleton, tmp_path: Path) -> None:
    plan = plan_of(skeleton, OWL)
    chosen = run(skeleton, plan, tmp_path).sparsities
    expected = {}
    with walk_blocks(skeleton, token_ids(), device="cpu", dtype=torch.float32) as walk:
        for index in walk:
            names = {w.name: frozenset({"gram"}) for w in plan.block(index)}
            statistics = walk.stream.observe(index, names)
            for weight in plan.block(index):
                dense = weight.view.get(skeleton.parameter_of(weight.view)).float()
                gram = statistics[weight.name].gram
                assert gram is not None
                expected[weight.name] = importances(index, 0.5, dense.square() * gram.diagonal())
    for name, sparsity in allocate_sparsities(expected, "owl").items():
        assert chosen[name] == pytest.approx(sparsity, abs=2e-3)
    sizes = {weight.name: weight.numel for weight in plan.weights}
    mean = sum(chosen[name] * sizes[name] for name in chosen) / sum(sizes.values())
    assert mean == pytest.approx(0.5, abs=1e-6)


def test_each_step_keeps_its_own_mean(skeleton: Skeleton, tmp_path: Path) -> None:
    fisher = {"prune": {"sparsity": 0.25, "allocate": "fisher"}, "solver": "wanda"}
    plan = plan_of(skeleton, {**OWL, "targets": ATTENTION}, {**fisher, "targets": FFN})
    found = run(skeleton, plan, tmp_path)
    assert found.figures["sparsities"] == found.sparsities
    for part, wanted in (("self_attn", 0.5), ("mlp", 0.25)):
        sizes = {weight.name: weight.numel for weight in plan.weights if part in weight.name}
        mean = sum(found.sparsities[name] * size for name, size in sizes.items()) / sum(sizes.values())
        assert mean == pytest.approx(wanted, abs=1e-3)


def test_ranks_and_sparsities_take_one_walk(
    skeleton: Skeleton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walks: list[int] = []

    def counted(*args: Any, **options: Any) -> Any:
        walks.append(1)
        return walk_blocks(*args, **options)

    monkeypatch.setattr(module, "walk_blocks", counted)
    plan = plan_of(skeleton, {**RANKS, "targets": ATTENTION}, {**OWL, "targets": FFN})
    both = run(skeleton, plan, tmp_path / "both")
    assert len(walks) == 1
    alone = run(skeleton, plan_of(skeleton, {**OWL, "targets": FFN}), tmp_path / "alone")
    assert both.sparsities == alone.sparsities
    run(skeleton, plan_of(skeleton, {**GPTQ, "score": "fisher"}), tmp_path / "gradients")
    assert len(walks) == 2


def test_moments_come_back_when_a_weight_is_solved(skeleton: Skeleton, tmp_path: Path) -> None:
    plan = plan_of(skeleton, {**GPTQ, "score": "fisher", "targets": FFN}, {**GPTQ, "targets": ATTENTION})
    found = run(skeleton, plan, tmp_path)
    seen = Statistics(tokens=96, gram=torch.eye(128))
    by_name = {weight.name: weight for weight in plan.weights}
    complete = found.complete(by_name["model.layers.1.mlp.down_proj"], seen)
    assert complete.tokens == 96
    assert complete.gram is seen.gram
    assert complete.output_gradient_gram is not None
    assert complete.output_gradient_gram.shape == (64, 64)
    other = found.complete(by_name["model.layers.1.self_attn.q_proj"], seen)
    assert other.output_gradient_gram is None
    assert Sensitivity().complete(by_name["model.layers.1.mlp.down_proj"], seen) is seen


def test_token_weights_and_the_metric_of_a_blocks_output(skeleton: Skeleton, tmp_path: Path) -> None:
    score = {"name": "fisher", "tokens": "by_gradient"}
    plan = plan_of(
        skeleton, {**GPTQ, "targets": FFN, "score": score}, {**GPTQ, "targets": ATTENTION, "score": "fisher"}
    )
    gathered = run(skeleton, plan, tmp_path / "pass")
    weights = gathered.token_weights(plan.block(0), (4, 24))
    assert set(weights) == {weight.name for weight in plan.block(0) if "mlp" in weight.name}
    for value in weights.values():
        assert value.shape == (4, 24)
        assert float(value.mean()) == pytest.approx(1.0, rel=1e-4)
        assert float(value[:, -1].max()) == 0 or float(value.min()) >= 0
    costs = gathered.output_costs(0, (4, 24))
    assert costs is not None
    hidden = skeleton.model.config.hidden_size
    assert costs[0].shape == (hidden, hidden)
    assert float(torch.linalg.eigvalsh(costs[0]).min()) > -1e-6 * float(costs[0].trace())
    # The last matrix of the block writes to its output: the gradients of both are the same.
    down = next(name for name in weights if "down_proj" in name)
    torch.testing.assert_close(weights[down], costs[1], rtol=1e-3, atol=1e-4)
    # Windows of other number or length than those of the gradients have no weights.
    assert gathered.token_weights(plan.block(0), (4, 25)) == {}
    assert gathered.output_costs(0, (5, 24)) is None
    assert Sensitivity().token_weights(plan.block(0), (4, 24)) == {}
    assert Sensitivity().output_costs(0, (4, 24)) is None


def test_the_recipe_says_whose_labels_gradients_have(skeleton: Skeleton, tmp_path: Path) -> None:
    found = {}
    for labels in ("model", "data"):
        step = {**GPTQ, "targets": FFN, "score": {"name": "fisher", "factors": "triple"}}
        recipe = Recipe.parse({"name": "test", "calibrate": {"labels": labels}, "steps": [step]})
        plan = make_plan(skeleton, recipe, dtype=torch.float32)
        gathered = run(skeleton, plan, tmp_path / labels)
        weight = plan.block(0)[-1] if plan.block(0)[-1].needs else plan.block(0)[0]
        found[labels] = gathered.complete(weight, Statistics(tokens=1)).fisher_left
    assert found["model"] is not None
    assert not torch.allclose(found["model"], found["data"], rtol=1e-3)


def test_the_recipe_says_on_how_many_tokens_gradients_are_taken(skeleton: Skeleton, tmp_path: Path) -> None:
    """Evenly spaced windows; the tokens of all others have no weight."""
    step = {**GPTQ, "targets": FFN, "score": {"name": "fisher", "tokens": "by_gradient"}}
    recipe = Recipe.parse({"name": "test", "calibrate": {"gradient_tokens": 2 * 24}, "steps": [step]})
    plan = make_plan(skeleton, recipe, dtype=torch.float32)
    weights = run(skeleton, plan, tmp_path / "pass").token_weights(plan.block(0), (4, 24))
    assert weights
    for value in weights.values():
        assert (value.abs().sum(1) > 0).tolist() == [True, False, False, True]
