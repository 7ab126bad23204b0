"""What the ranks of a block's weights lose, alone and sharing a factor, against float64 singular values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.allocate.rank_curves import Ranking, rules_of, shared_factor
from compress.checkpoint.source import open_source
from compress.linalg.weighted_svd import refit_left
from compress.models.skeleton import Skeleton, open_skeleton
from compress.planning.make import make_plan
from compress.recipe.recipe import Recipe
from compress.score.activation import Activation
from compress.score.metric import Kron, Side
from compress.score.statistics import Statistics

GROUPS = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1, "gate_proj": 2, "up_proj": 2, "down_proj": 3}


@pytest.fixture(scope="module")
def skeleton(tiny_model: Callable[..., Path]) -> Skeleton:
    opened = open_skeleton(open_source(tiny_model("llama")))
    opened.load_block(0, device="cpu", dtype=torch.float32)
    return opened


def gram(group: int) -> Tensor:
    columns = 128 if group == 3 else 64
    inputs = torch.randn(500, columns, generator=torch.Generator().manual_seed(group))
    inputs = inputs * torch.linspace(0.3, 2, columns)
    return inputs.T @ inputs / 500


def ranked(
    skeleton: Skeleton, folder: Path, *steps: Mapping[str, Any], groups: Mapping[str, int] = GROUPS
) -> Ranking:
    """The first block's weights under ``steps``; those of one group read the same inputs."""
    chosen = Recipe.parse({"name": "x", "steps": list(steps), "allow_split_groups": True})
    plan = make_plan(skeleton, chosen)
    ranking = Ranking(skeleton, plan, folder, rules_of(plan))
    weights = plan.block(0)
    seen = {w.name: Statistics(tokens=5, gram=gram(groups[w.name.rpartition(".")[2]])) for w in weights}
    ranking.take(0, weights, seen, lambda _: Activation())
    return ranking


def step(allocate: str, targets: str = ".*_proj", **more: Any) -> dict[str, Any]:
    lowrank = {"ratio": 0.6, "allocate": allocate, **more}
    return {"targets": [f"re:{targets}"], "lowrank": lowrank, "solver": "weighted_svd"}


def dense_of(skeleton: Skeleton, name: str) -> Tensor:
    view = next(view for view in skeleton.views if view.name == name)
    return view.get(skeleton.parameter_of(view).detach()).double()


def values_of(skeleton: Skeleton, name: str) -> Tensor:
    root = torch.linalg.cholesky(gram(GROUPS[name.rpartition(".")[2]]).double())
    return torch.linalg.svdvals(dense_of(skeleton, name) @ root)


@pytest.mark.parametrize("rule", ["truncation", "fisher"])
def test_a_rank_loses_the_energy_behind_it(skeleton: Skeleton, tmp_path: Path, rule: str) -> None:
    ranking = ranked(skeleton, tmp_path, step(rule))
    assert len(ranking.curves) == 7
    for name, found in ranking.curves.items():
        energy = values_of(skeleton, name).square()
        # By Fisher a loss is one of the model's; by any other rule it is a share of losing all.
        unit = 1.0 if rule == "fisher" else float(energy.sum())
        assert found.total == pytest.approx(float(energy.sum()) / unit, rel=1e-4)
        for option in found.options:
            expected = float(energy[option.choice.rank :].sum()) / unit
            assert option.loss == pytest.approx(expected, rel=1e-3, abs=1e-6)
            out, columns = dense_of(skeleton, name).shape
            assert option.nbytes == 2 * option.choice.rank * (out + columns)


def test_weights_of_the_same_inputs_could_share(skeleton: Skeleton, tmp_path: Path) -> None:
    ranking = ranked(skeleton, tmp_path, step("truncation", share=True))
    members = [[name.rpartition(".")[2] for name in group.members] for group in ranking.groups]
    assert members == [["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]]


@pytest.mark.parametrize(
    ("steps", "groups"),
    [
        ([step("truncation", share=False)], GROUPS),
        ([step("truncation", share=True)], {**GROUPS, "up_proj": 1, "k_proj": 1}),
        (
            [
                step("truncation", ".*(gate|q|k)_proj", share=True),
                step("truncation", ".*(up|v|o|down)_proj", share=True),
            ],
            GROUPS,
        ),
    ],
    ids=["the recipe does not let them", "their inputs differ", "they are of several steps"],
)
def test_others_could_not(
    skeleton: Skeleton, tmp_path: Path, steps: list[Any], groups: dict[str, int]
) -> None:
    members = [set(group.members) for group in ranked(skeleton, tmp_path, *steps, groups=groups).groups]
    assert not any(
        {name.rpartition(".")[2] for name in group} & {"gate_proj", "up_proj", "v_proj"} for group in members
    )


def test_a_shared_factor_counts_once_and_loses_what_the_stacked_weights_do(
    skeleton: Skeleton, tmp_path: Path
) -> None:
    ranking = ranked(skeleton, tmp_path, step("fisher", share=True))
    group = ranking.groups[0]
    weights = [dense_of(skeleton, name) for name in group.members]
    energy = torch.linalg.svdvals(torch.cat(weights) @ torch.linalg.cholesky(gram(0).double())).square()
    for option in group.curve.options:
        rank = option.choice.rank
        assert option.nbytes == 2 * rank * (64 + sum(len(weight) for weight in weights))
        assert option.loss == pytest.approx(float(energy[rank:].sum()), rel=1e-3, abs=1e-6)
    assert group.curve.uniform == sum(ranking.curves[name].uniform for name in group.members)
    # The file holds the factor itself, under the name of the member that will hold it.
    owner, other = group.members[:2]
    structure = SimpleNamespace(structure=SimpleNamespace(shared=True))
    planned: Any = SimpleNamespace(
        methods=structure, view=SimpleNamespace(block=0), input_from=owner, name=other
    )  # fmt: skip
    factor = shared_factor(tmp_path, planned, "cpu")["input_factor"]
    metric, rank = Kron(right=Side(gram(0))), 8
    losses = [
        metric.loss((w - refit_left(w.float(), factor[:rank], metric) @ factor[:rank].double()).float())
        for w in weights
    ]
    assert sum(losses) == pytest.approx(float(energy[rank:].sum()), rel=1e-2)


def test_budgets_are_those_of_the_recipes_ratio(skeleton: Skeleton, tmp_path: Path) -> None:
    for name, found in ranked(skeleton, tmp_path, step("truncation")).curves.items():
        numel = dense_of(skeleton, name).numel()
        assert found.whole == 2 * numel
        assert found.uniform == int(0.6 * 2 * numel)
