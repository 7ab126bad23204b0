"""What the first of several ranks holds besides, which one process does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compress.checkpoint.source import open_source
from compress.models.skeleton import open_skeleton
from compress.models.views import WeightView
from compress.planning import make
from compress.planning.dealt import dealt_solutions, sent_sums
from compress.planning.memory import peak_memory
from compress.recipe.recipe import Recipe
from compress.system.ranks import Ranks

VIEWS = [
    WeightView("up", "up", "linear", 0, (128, 64), None, ("up",)),
    WeightView("down", "down", "linear", 0, (64, 128), None, ("down",)),
]
NEEDS = {"up": frozenset({"gram"}), "down": frozenset({"gram"})}
RECIPE = Recipe.parse(
    {"name": "x", "steps": [{"quantize": {"bits": 4}}], "calibrate": {"samples": 1, "length": 8}}
)


def test_one_process_holds_nothing_besides() -> None:
    assert sent_sums(VIEWS, NEEDS, 1 << 40, 1) == 0
    assert dealt_solutions(VIEWS, 1000, 1) == 1000


def test_the_largest_sum_of_another_or_the_hidden_states_that_it_is_sent() -> None:
    assert sent_sums(VIEWS, NEEDS, 0, 2) == 4 * 128**2
    assert sent_sums(VIEWS, NEEDS, 1 << 20, 2) == 1 << 19
    assert sent_sums(VIEWS, NEEDS, 1 << 40, 2) == 64 << 20


def test_all_solved_weights_or_a_solver_beside_its_own() -> None:
    solved = 2 * 4 * (128 * 64 + 64 * 128)
    assert dealt_solutions(VIEWS, 0, 4) == solved
    assert dealt_solutions(VIEWS, solved, 4) == solved + solved // 4


def test_a_plan_counts_the_ranks_that_there_are(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    skeleton = open_skeleton(open_source(tiny_model("llama")))
    views = [view for view in skeleton.views if view.block == 0]
    needs = {view.name: frozenset({"gram"}) for view in views}
    alone, four = (
        peak_memory(skeleton, RECIPE, needs, torch.float32, processes=processes) for processes in (1, 4)
    )
    solver = 4 * (4 + 2 * 5) * 128 * 64 + 4 * 128**2  # rounded under all ranges at once
    assert four - alone == dealt_solutions(views, solver, 4) - solver > 0
    data = {"name": "x", "steps": [{"quantize": {"bits": 4, "group_size": 64}, "solver": "gptq"}]}
    recipe = Recipe.parse(data)
    plain = make.make_plan(skeleton, recipe).peak_memory
    monkeypatch.setattr(make, "current_ranks", lambda: Ranks(0, 4))
    assert make.make_plan(skeleton, recipe).peak_memory > plain
