"""One weight at a time: every weight gets the metric of its own score, and factorisations are shared by equal inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from compress import compress
from compress.linalg import admm, cholesky
from compress.pipeline.block import _solving_order
from compress.pipeline.weight import solve_weight
from compress.planning.methods import Methods
from compress.recipe.recipe import Recipe
from compress.score.magnitude import Magnitude
from compress.score.metric import Kron
from compress.score.statistics import Statistics
from compress.solvers.base import Problem, Solution, nearest_point
from compress.structures.grids.integer import IntegerGrid

INPUT_GROUPS = 2 * 4  # of tiny llama: two blocks with the inputs of q/k/v, of o, of gate/up, and of down
DATA = {"samples": 4, "length": 24}


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog " * 40)
    return str(path)


def errors(source: Path, out: Path, text: str, *steps: Mapping[str, Any]) -> dict[str, float]:
    """Weight → its error in its own score, of a run of ``steps``."""
    recipe = Recipe.parse({"name": "test", "steps": list(steps), "calibrate": DATA})
    report = compress(source, recipe, out, data=text, device="cpu").report
    return {weight.name: weight.error for weight in report.weights}


def test_options_of_one_score_make_their_own_metrics(
    tiny_model: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    def step(name: str, alpha: float) -> dict[str, Any]:
        score = {"name": "input-scale", "alpha": alpha}
        target = f"re:.*{name}_proj"
        return {"targets": [target], "lowrank": {"rank": 16}, "solver": "weighted_svd", "score": score}

    source = tiny_model("llama")
    both = errors(source, tmp_path / "both", text, step("[qv]", 0.5), step("k", 2.0))
    alone = errors(source, tmp_path / "alone", text, step("[qv]", 2.0), step("k", 2.0))
    keys = [name for name in both if name.startswith("model.layers.0") and name.endswith("k_proj")]
    assert keys
    assert all(both[name] == alone[name] for name in keys)
    queries = [name for name in both if name.startswith("model.layers.0") and name.endswith("q_proj")]
    assert all(both[name] != alone[name] for name in queries)


@pytest.mark.parametrize(
    "score",
    [
        "activation",
        "activation-diagonal",
        "fisher",
        {"name": "fisher", "inputs": "dense"},
        {"name": "input-scale", "alpha": 1.0},
    ],
    ids=str,
)
def test_one_factorisation_for_weights_of_the_same_inputs(
    tiny_model: Callable[..., Path], tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch, score: Any
) -> None:
    calls = []
    factorise = cholesky._inverse_root

    def counted(matrix: torch.Tensor, *args: Any) -> Any:
        calls.append(matrix.shape)
        return factorise(matrix, *args)

    monkeypatch.setattr(cholesky, "_inverse_root", counted)
    step = {"quantize": {"bits": 4, "group_size": 16}, "solver": "gptq", "score": score}
    found = errors(tiny_model("llama"), tmp_path / "out", text, step)
    assert len(found) == 2 * 7
    assert len(calls) == INPUT_GROUPS


@pytest.mark.parametrize("score", ["activation", "fisher"])
def test_one_eigendecomposition_for_weights_of_the_same_inputs(
    tiny_model: Callable[..., Path], tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch, score: str
) -> None:
    calls = []
    decompose = admm._basis

    def counted(side: Any, like: torch.Tensor) -> Any:
        calls.append(side.matrix)
        return decompose(side, like)

    monkeypatch.setattr(admm, "_basis", counted)
    step = {"prune": {"sparsity": 0.5}, "solver": "alps", "score": score}
    found = errors(tiny_model("llama"), tmp_path / "out", text, step)
    # The left side is each weight's own.
    assert len(calls) == INPUT_GROUPS + len(found) == INPUT_GROUPS + 14


def test_weights_of_the_same_inputs_are_solved_one_after_the_other() -> None:
    first, second, wide = Statistics(1), Statistics(1), Statistics(1)
    seen = {"a.gate": first, "b.gate": second, "a.up": first, "b.up": second, "down": wide}
    shapes = {name: (4, 16 if name == "down" else 8) for name in seen}
    stage: Any = [SimpleNamespace(name=n, view=SimpleNamespace(shape=shapes[n])) for n in seen]
    assert [w.name for w in _solving_order(stage, seen)] == ["down", "a.gate", "a.up", "b.gate", "b.up"]


@dataclass(frozen=True)
class Nonsense:
    """A solver that returns an allowed weight that has nothing to do with the one to approximate."""

    guarded: bool = True

    def solve(self, problem: Problem[Any], start: Solution | None = None) -> Solution:
        return nearest_point(problem, -problem.target)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()


def test_a_solution_that_is_worse_than_plain_rounding_is_overruled() -> None:
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    grid, metric = IntegerGrid(4, 16), Kron()
    for guarded in (True, False):
        solver: Any = Nonsense(guarded)
        attempt = solve_weight(Methods(grid, Magnitude(), (solver,)), weight, Statistics(), metric, 0)
        nearest = grid.project(weight, grid.fit(weight, metric))
        assert torch.equal(attempt.solution.theta, nearest) == guarded
        assert ("plain rounding was nearer" in str(attempt.record["fallback"])) == guarded
        expected = metric.loss(weight - attempt.solution.theta) / metric.loss(weight)
        assert attempt.record["error"] == pytest.approx(expected)
