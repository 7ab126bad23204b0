"""Solvers of other packages: found by their entry points, the example among them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import compress
from compress.errors import UserError
from compress.recipe.recipe import Recipe
from compress.recipe.registry import SOLVERS, find, plugins
from compress.score.metric import Kron, Side
from compress.solvers.base import Problem, nearest_point
from compress.structures.grids.integer import IntegerGrid

PLUGIN = Path(__file__).resolve().parents[3] / "examples" / "plugin"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example as pip would install it, and a package that is broken."""
    for name, points in {
        "compress_gpfq": "gpfq = compress_gpfq.gpfq:GPFQ",
        "broken": "broken = no_such_package:Solver\nnearest = no_such_package:Nearest",
    }.items():
        info = tmp_path / f"{name}-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text(f"[compress.solvers]\n{points}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(PLUGIN))
    monkeypatch.delitem(sys.modules, "compress_gpfq.gpfq", raising=False)


@pytest.mark.usefixtures("installed")
def test_the_example_solves_in_a_run(tmp_path: Path) -> None:
    step = {"quantize": {"bits": 3, "group_size": 64}, "solver": {"name": "gpfq"}, "score": "activation"}
    losses = {}
    for solver in ("gpfq", "nearest"):
        recipe = Recipe.parse({"name": solver, "steps": [{**step, "solver": solver}]})
        report = compress.compress("embedded", recipe, tmp_path / solver, samples=4, length=64).report
        assert {weight.solver for weight in report.weights} == {solver}
        losses[solver] = sum(weight.error for weight in report.weights if weight.error is not None)
    assert losses["gpfq"] < losses["nearest"]
    with pytest.raises(UserError, match="strength"):
        compress.plan("embedded", {"steps": [{**step, "solver": {"name": "gpfq", "strength": 2}}]})


@pytest.mark.usefixtures("installed")
def test_the_example_is_the_published_recursion() -> None:
    """Against the recursion over the inputs themselves, in float64: ``u += (w_j − θ_j) x_j``."""
    torch.manual_seed(0)
    weight, inputs = torch.randn(6, 16), torch.randn(200, 16) @ torch.randn(16, 16)
    grid = IntegerGrid(3, 16, False, scale_dtype=torch.float32)
    gram = (inputs.T @ inputs) / len(inputs)
    problem = Problem(weight, grid, Kron(right=Side(gram)))
    parameters = nearest_point(problem, weight).parameters
    rounder = grid.column_rounder(parameters, problem.shape)
    lost, expected = torch.zeros(6, 200, dtype=torch.float64), torch.zeros(6, 16)
    for j in range(16):
        x = inputs[:, j].double()
        wanted = weight[:, j].double() + lost @ x / (x @ x)
        expected[:, j] = rounder(wanted.float(), j)
        lost += torch.outer(weight[:, j].double() - expected[:, j].double(), x)
    assert torch.equal(find("solver", "gpfq")().solve(problem).theta, expected)


@pytest.mark.usefixtures("installed")
def test_names_of_this_package_come_first_and_broken_ones_are_told() -> None:
    assert find("solver", "nearest").__module__ == "compress.solvers.nearest"
    assert {"gpfq", "broken", "nearest"} <= set(plugins("solver"))
    with pytest.raises(
        UserError, match="'broken' of another package .* cannot be imported: ModuleNotFoundError"
    ):
        find("solver", "broken")
    with pytest.raises(UserError, match="did you mean 'gpfq'"):
        find("solver", "gpfk")


def test_without_a_plugin_its_name_is_not_known() -> None:
    assert "gpfq" not in SOLVERS
    with pytest.raises(UserError, match="there is no solver called 'gpfq'"):
        find("solver", "gpfq")
