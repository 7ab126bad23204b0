"""What every registered solver owes, on every structure that it serves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from compress.pipeline.weight import Solved, solve_weight
from compress.planning.methods import Methods, unmet
from compress.recipe.registry import SOLVERS, find
from compress.recipe.sections import Method
from compress.score.metric import Kron, Side
from compress.score.statistics import Statistics
from compress.structures.base import Structure
from compress.structures.grids.integer import IntegerGrid
from compress.structures.grids.nf4 import NF4Grid
from compress.structures.sparse.masked import Masked
from compress.structures.sparse.masked_grid import MaskedGrid
from compress.structures.sparse.patterns import NM, Unstructured

STRUCTURES: dict[str, Structure] = {
    "grid": IntegerGrid(4, "channel", False),
    "symmetric grid": IntegerGrid(3, "channel", True),
    "nf4": NF4Grid(32),
    "half": Masked(Unstructured(0.5)),
    "two of four": Masked(NM(2, 4)),
    "half on a grid": MaskedGrid(Unstructured(0.5), IntegerGrid(4, "channel", False)),
    "two of four on a grid": MaskedGrid(NM(2, 4), IntegerGrid(4, "channel", True)),
}


def pairs() -> Iterator[Any]:
    for name in SOLVERS:
        solver = find("solver", name)
        if getattr(solver, "scope", "weight") == "block":
            continue
        for label, structure in STRUCTURES.items():
            if not unmet(solver, structure):
                yield pytest.param(solver(), structure, id=f"{name}, {label}")


PAIRS = list(pairs())


def run(solver: Any, structure: Structure, case: Any, seed: int = 0, left: Side | None = None) -> Solved:
    gram = case.inputs.T @ case.inputs / len(case.inputs)
    cross = case.dense.T @ case.inputs / len(case.inputs)
    seen = Statistics(
        tokens=len(case.inputs),
        gram=gram,
        diagonal=gram.diagonal().clone(),
        mean=case.inputs.mean(0),
        mean_abs=case.inputs.abs().mean(0),
        max_abs=case.inputs.abs().amax(0),
        cross=cross,
        squared_gradient=torch.ones_like(case.weight),
    )
    score = find("score", "activation")()
    return solve_weight(
        Methods(structure, score, (solver,)),
        case.weight,
        seen,
        Kron(left or Side(), Side(gram)),
        seed,
    ).pack()


def shortened(solver: Any) -> Any:
    """Few steps: threads that wait for each other make many slow."""
    limits = {"steps": 5, "iterations": 5, "refit": 5, "passes": 2}
    own = {field.name: getattr(solver, field.name) for field in fields(solver)}
    return replace(solver, **{name: limit for name, limit in limits.items() if type(own.get(name)) is int})


def fitting(structure: Structure, case: Any) -> bool:
    """Whether the structure can hold a weight of the case's shape."""
    try:
        structure.layout((case.weight.shape[0], case.weight.shape[1]))
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(("solver", "structure"), PAIRS)
def test_contract(solver: Any, structure: Structure, make_case: Callable[..., Any]) -> None:
    case = make_case("outliers20")
    before = case.weight.clone()
    first, again = run(solver, structure, case), run(solver, structure, case)
    theta = first.packed.dense(torch.float32)
    assert theta.shape == case.weight.shape
    assert torch.equal(case.weight, before)
    assert first.packed.layout == structure.layout(theta.shape)  # type: ignore[arg-type]
    specs = first.packed.layout.specs(theta.shape)  # type: ignore[arg-type]
    assert {name: (tuple(t.shape), t.dtype) for name, t in first.packed.tensors.items()} == {
        name: (spec.shape, spec.dtype) for name, spec in specs.items()
    }
    assert all(torch.equal(first.packed.tensors[name], again.packed.tensors[name]) for name in specs)
    if first.record["error_nearest"] is not None:
        # Where a solver itself is worse, rounding has taken its place and the record says so.
        assert first.record["error"] <= first.record["error_nearest"] * (1 + 1e-6)
    pattern = getattr(structure, "pattern", None)
    if pattern is not None:
        assert int((theta != 0).sum()) <= pattern.kept(theta.shape)
    if isinstance(pattern, NM):
        assert int((theta.view(len(theta), -1, pattern.m) != 0).sum(-1).max()) <= pattern.n


@pytest.mark.parametrize(("solver", "structure"), PAIRS)
def test_hard_inputs_give_finite_weights(
    solver: Any, structure: Structure, make_case: Callable[..., Any]
) -> None:
    for kind in ("outliers100", "dead", "all dead", "singular", "bf16", "zero", "one row", "one column"):
        case = make_case(kind)
        if not fitting(structure, case):
            continue
        solved = run(solver, structure, case)
        assert bool(torch.isfinite(solved.packed.dense(torch.float32)).all()), kind
        if solved.record["error_nearest"] is not None:
            assert solved.record["error"] <= solved.record["error_nearest"] * (1 + 1e-6), kind


@pytest.mark.parametrize(("solver", "structure"), PAIRS)
def test_rows_that_hang_together(solver: Any, structure: Structure, make_case: Callable[..., Any]) -> None:
    """A full matrix on the metric's left, one that only few gradients make."""
    for kind in ("plain", "singular", "zero", "one row", "one column"):
        case = make_case(kind)
        if not fitting(structure, case):
            continue
        output_gradients = torch.randn(5, len(case.weight), generator=torch.Generator().manual_seed(3))
        solved = run(shortened(solver), structure, case, left=Side(output_gradients.T @ output_gradients))
        assert bool(torch.isfinite(solved.packed.dense(torch.float32)).all()), kind
        if solved.record["error_nearest"] is not None:
            assert solved.record["error"] <= solved.record["error_nearest"] * (1 + 1e-6), kind


@pytest.mark.parametrize(("solver", "structure"), PAIRS)
def test_threads_change_nothing(solver: Any, structure: Structure, make_case: Callable[..., Any]) -> None:
    case, solver = make_case("plain"), shortened(solver)
    one = run(solver, structure, case).packed.dense(torch.float32)
    torch.set_num_threads(3)
    try:
        three = run(solver, structure, case).packed.dense(torch.float32)
    finally:
        torch.set_num_threads(1)
    assert torch.allclose(one, three, atol=1e-5, rtol=1e-5)


def test_a_solver_is_named_as_in_a_recipe() -> None:
    assert all(Method(name=name).name == name for name in SOLVERS)
    assert replace(find("solver", "awp")(), steps=3).steps == 3
