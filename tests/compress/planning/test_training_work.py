"""Counts of trainings against trainings that are counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress import Recipe, compress
from compress.checkpoint.source import open_source
from compress.healing.loop import Training
from compress.healing.rates import choose_rate
from compress.models.skeleton import open_skeleton
from compress.planning.make import make_plan
from compress.planning.methods import build
from compress.planning.training_work import BlockRuns, block_runs, healing_runs, windows_of
from compress.recipe.recipe import heal_of
from compress.recipe.section import Method
from compress.score.metric import Kron
from compress.solvers.base import BlockProblem, Problem
from compress.solvers.nearest import Nearest

GRID = {"quantize": {"bits": 3, "group_size": 32}, "solver": "nearest"}
MASK = {"prune": {"sparsity": 0.5}, "solver": "wanda"}
PATTERN = {"prune": {"pattern": "2:4"}, "solver": "wanda"}


@pytest.fixture(scope="module")
def structures(tiny_model: Callable[..., Path]) -> dict[str, Any]:
    skeleton = open_skeleton(open_source(tiny_model("llama")))
    found = {}
    for name, step in (("grid", GRID), ("mask", MASK), ("pattern", PATTERN)):
        plan = make_plan(skeleton, Recipe.parse({"name": "x", "steps": [step]}))
        found[name] = plan.weights[0].methods.structure
    return found


@pytest.mark.parametrize(
    ("name", "structure", "options"),
    [
        ("signround", "grid", {"iterations": 7, "checks": 3}),
        ("gsq", "grid", {"steps": 9, "rows": 0.5, "checks": 2}),
        ("gsq", "grid", {"steps": 6}),
        ("reconstruct", "mask", {"steps": 5, "judged": 0.4}),
        ("lottery", "mask", {"steps": 10, "checks": 2}),
        ("learned_masks", "pattern", {"steps": 6, "checks": 1}),
    ],
)
@pytest.mark.parametrize("batches", [1, 5])
def test_solvers_run_the_block_as_often_as_is_counted(
    name: str, structure: str, options: dict[str, Any], batches: int, structures: dict[str, Any]
) -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    problem = Problem(weight, structures[structure], Kron())
    inputs, runs = torch.randn(batches, 1, 3, 64), {True: 0, False: 0}

    def run(batch: int, thetas: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        runs[torch.is_grad_enabled()] += 1
        return inputs[batch] @ thetas["w"].T, inputs[batch] @ weight.T

    solver = build("solver", Method(name=name, options=options))
    solver.solve(BlockProblem({"w": problem}, batches, run), {"w": Nearest().solve(problem)})
    # The dense output that errors are relative to is no run of the block.
    assert block_runs(solver, batches) == BlockRuns(runs[True], runs[False])


def test_batches_are_those_of_the_solver_that_wants_least() -> None:
    solvers = (
        build("solver", Method(name="signround")),
        build("solver", Method(name="gsq", options={"tokens": 1024})),
    )
    assert [windows_of(solvers, 4, length) for length in (128, 512, 1024, 2048)] == [4, 2, 1, 1]


@pytest.mark.parametrize("rate", [0.02, "auto"])
def test_healing_runs_the_models_on_as_many_tokens_as_are_counted(
    rate: Any, tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog " * 200)
    section = {
        "train": ["norms", "scales"], "tokens": 1024, "length": 32, "batch": 2, "holdout": 3, "evaluations": 2, "rate": rate,
    }  # fmt: skip
    counted, tried, inside = [0], list[float](), [False]
    run = Training.run

    def seen(module: nn.Module, given: Any) -> None:
        if inside[0] and isinstance(module, nn.Embedding):
            counted[0] += given[0].numel()

    def running(training: Training) -> Any:
        inside[0] = True
        try:
            return run(training)
        finally:
            inside[0] = False

    def choosing(trial: Callable[[float], float], start: float) -> Any:
        def trying(rate: float) -> float:
            tried.append(rate)
            return trial(rate)

        return choose_rate(trying, start)

    monkeypatch.setattr(Training, "run", running)
    monkeypatch.setattr("compress.healing.loop.choose_rate", choosing)
    hook = nn.modules.module.register_module_forward_pre_hook(seen)
    try:
        recipe = Recipe.parse({"name": "x", "steps": [GRID], "heal": section})
        compress(tiny_model("llama"), recipe, tmp_path / "out", data=str(text))
    finally:
        hook.remove()
    runs = healing_runs(heal_of(section))
    left_out = (4 - len(tried)) if rate == "auto" else 0
    # A rate that is not tried any more leaves out four steps of two windows, and a measurement.
    expected = runs.trained * (1 + runs.teachers) + runs.held_out + runs.first
    assert counted[0] == expected - left_out * (4 * 2 * 32 * 2 + runs.first)


def test_healing_grows_with_what_is_asked_for() -> None:
    def passes(**changes: Any) -> float:
        return healing_runs(heal_of({"train": ["scales"], "rate": 0.01, "tokens": 65536, **changes})).passes

    assert passes(tokens=131072) - passes() == pytest.approx(65536 * 4)
    assert passes(evaluations=21) - passes() == 16 * 512
    assert passes(checkpointing=True) - passes() == 65536
    assert passes(train=["norms"]) - passes() == -65536
    assert passes(rate="auto") > passes()
    assert passes(teachers=["another"]) - passes() == 65536
    # One step is measured once behind it, however often measurements are asked for.
    assert healing_runs(heal_of({"train": ["scales"], "rate": 0.01, "tokens": 2048})).held_out == 2 * 16 * 512
