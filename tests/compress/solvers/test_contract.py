"""What every registered solver owes, on every structure that it serves; each solver by itself, without the pipeline's guard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, get_args, get_type_hints

import pytest
import torch

from compress.linalg.factor_cache import FactorCache
from compress.planning.methods import unmet
from compress.recipe.registry import SOLVERS, find
from compress.recipe.section import Method
from compress.score.metric import Kron, Metric, Side
from compress.score.statistics import Statistics
from compress.solvers.base import Problem, Solution, nearest_point
from compress.structures.base import Selects, Structure
from compress.structures.grids.floats import FloatGrid
from compress.structures.grids.k_quants import GGUFGrid
from compress.structures.grids.value_table import TableGrid
from compress.structures.sparse.patterns import NM

MOVE_CODES = ("gptq", "coordinate_descent", "yaqa", "group_scales", "adaround", "hqq", "signround", "random")
"""They have to serve any grid, also one whose values are not evenly spaced."""

TWO_SIDED = ("awp", "alps", "yaqa", "refit", "weighted_svd", "lost", "oats", "eora")
"""They read the metric's left side; the others take each row by itself."""

GAIN = {
    **dict.fromkeys(("gptq", "coordinate_descent", "adaround", "yaqa", "group_scales"), 0.9),
    **dict.fromkeys(("alps", "awp", "refit", "eora", "oats"), 0.92),
    **dict.fromkeys(("sparsegpt", "lost"), 0.97),
}
"""Solver → what its loss may be at most of the nearest point's on plain correlated inputs."""


def gain_of(solver: Any, structure: Structure) -> float:
    """The largest share of the nearest point's loss that is allowed; 1 where the solver has nothing to gain."""
    name = name_of(solver)
    if name == "awp" and not isinstance(structure, Selects):
        return 1.0  # on inputs that are hardly correlated its steps gain nothing
    if name == "group_scales" and not getattr(structure, "rows_apart", True):
        return 1.0  # rows that share their scales have no groups of their own
    if name in ("gptq", "group_scales", "adaround") and isinstance(
        structure, FloatGrid | GGUFGrid | TableGrid
    ):
        return 0.95  # its fit heeds the metric's columns already
    if name == "gptq" and isinstance(structure, Selects):
        return 0.97  # the mask is held
    return GAIN.get(name, 1.0 if getattr(solver, "guarded", True) else float("inf"))


def problem_of(case: Any, structure: Structure, score: str, *, two_sided: bool = False) -> Problem[Any]:
    """The case in the metric of a score, or in one with a full left side, which only few gradients make."""
    gram = case.inputs.T @ case.inputs / len(case.inputs)
    gradients = torch.randn(5, len(case.weight), generator=torch.Generator().manual_seed(3))
    statistics = Statistics(
        tokens=len(case.inputs),
        gram=gram,
        diagonal=gram.diagonal().clone(),
        mean=case.inputs.mean(0),
        mean_abs=case.inputs.abs().mean(0),
        max_abs=case.inputs.abs().amax(0),
        cross=case.dense.T @ case.inputs / len(case.inputs),
        squared_gradient=torch.ones_like(case.weight),
        output_gradient_gram=gradients.T @ gradients / len(gradients),
        dense_gram=gram,
    )
    metric: Metric = find("score", score)().metric(statistics)
    if two_sided:
        metric = Kron(Side(statistics.output_gradient_gram), Side(gram))
    return Problem(case.weight, structure, metric, statistics)


def losses(problem: Problem[Any], solution: Solution) -> tuple[float, float]:
    """The losses of a solution and of the structure's nearest point."""
    plain = nearest_point(problem, problem.weight)
    return tuple(problem.metric.loss(problem.target - found.theta) for found in (solution, plain))  # type: ignore[return-value]


def check_quality(solver: Any, problem: Problem[Any], share: float = 1.0) -> None:
    """The solver's own solution costs no more than ``share`` of the nearest point in the metric."""
    solution = solver.solve(problem)
    assert bool(torch.isfinite(solution.theta).all())
    own, plain = losses(problem, solution)
    assert own <= plain * share * (1 + 1e-6), (own, plain)


def shortened(solver: Any) -> Any:
    """Few steps: threads that wait for each other make many slow."""
    limits = {"steps": 5, "iterations": 5, "refit": 5, "passes": 2, "rounds": 3}
    options = {field.name: getattr(solver, field.name) for field in fields(solver)}
    return replace(solver, **{name: n for name, n in limits.items() if type(options.get(name)) is int})


def fitting(structure: Structure, case: Any) -> bool:
    """Whether the structure can hold a weight of the case's shape."""
    try:
        structure.layout((case.weight.shape[0], case.weight.shape[1]))
    except ValueError:
        return False
    return True


def name_of(solver: Any) -> str:
    return next(name for name in SOLVERS if type(solver) is find("solver", name))


def test_contract(solver: Any, structure: Structure, make_case: Callable[..., Any]) -> None:
    case = make_case("outliers20")
    problem, before = problem_of(case, structure, "activation"), case.weight.clone()
    first, again = solver.solve(problem), solver.solve(problem)
    packed = first.encode(structure)
    theta, shape = packed.dense(torch.float32), problem.shape
    assert theta.shape == case.weight.shape
    assert torch.equal(case.weight, before)
    assert torch.allclose(theta, first.theta, atol=1e-5)
    assert torch.allclose(structure.project(first.theta, first.parameters), first.theta, atol=1e-5)
    assert packed.layout == structure.layout(shape)
    specs = packed.layout.specs(shape)
    assert {name: (tuple(t.shape), t.dtype) for name, t in packed.tensors.items()} == {
        name: (spec.shape, spec.dtype) for name, spec in specs.items()
    }
    same = again.encode(structure).tensors
    assert all(torch.equal(packed.tensors[name], same[name]) for name in specs)
    pattern = getattr(structure, "pattern", None)
    if pattern is not None:
        assert int((theta != 0).sum()) <= pattern.kept(theta.shape)
    if isinstance(pattern, NM):
        assert int((theta.view(len(theta), -1, pattern.m) != 0).sum(-1).max()) <= pattern.n


def test_a_weight_that_is_stored_transposed_stays_as_it_is(
    solver: Any, structure: Structure, make_case: Callable[..., Any]
) -> None:
    """A Conv1D holds ``[in, out]``: the weight is a view of it, and so may be what an earlier solver left."""
    case = make_case("outliers20")
    problem = problem_of(case, structure, "activation")
    turned = replace(problem, weight=problem.weight.T.contiguous().T, factors=FactorCache())
    start = nearest_point(turned, turned.weight)
    start = replace(start, theta=start.theta.T.contiguous().T)
    before = turned.weight.clone(), start.theta.clone()
    shortened(solver).solve(turned)
    shortened(solver).solve(turned, start)
    assert torch.equal(turned.weight, before[0])
    assert torch.equal(start.theta, before[1])


def test_no_guarded_solver_needs_the_guard(
    solver: Any, structure: Structure, make_case: Callable[..., Any]
) -> None:
    """In the solver's own score's metric, and with the left side too if it reads that."""
    name = name_of(solver)
    if not getattr(solver, "guarded", True):
        return
    score = "activation" if solver.score == "fisher" else solver.score
    for kind in ("plain", "outliers20", "dead", "all dead", "singular", "bf16", "zero"):
        case = make_case(kind)
        check_quality(solver, problem_of(case, structure, score))
        if name in TWO_SIDED and kind != "outliers20":
            check_quality(solver, problem_of(case, structure, score, two_sided=True))


def test_better_than_the_nearest_point(
    solver: Any, structure: Structure, make_case: Callable[..., Any]
) -> None:
    problem = problem_of(make_case("plain", tokens=1024), structure, "activation")
    check_quality(solver, problem, gain_of(solver, structure))


def test_follows_the_true_input_target(
    solver: Any, structure: Structure, make_case: Callable[..., Any]
) -> None:
    """Either a solver says that it does not look at the target, or it comes near one that is far from the weight."""
    problem = problem_of(make_case("plain"), structure, "activation")
    target = problem.weight.roll(1, 1)
    plain, followed = (solver.solve(replace(problem, true_input=t)).theta for t in (None, target))
    if not getattr(solver, "true_input", True):
        assert torch.equal(plain, followed)
    else:
        assert problem.metric.loss(target - followed) < 0.8 * problem.metric.loss(target - plain)


@dataclass(frozen=True)
class Nonsense:
    """Returns an allowed weight that has nothing to do with the one it was given."""

    requires: ClassVar[type] = Structure

    def solve(self, problem: Problem[Any], start: Solution | None = None) -> Solution:
        return nearest_point(problem, problem.weight.roll(1, 0))


def test_nonsense_fails(uneven_grid: Any, make_case: Callable[..., Any]) -> None:
    for kind in ("plain", "outliers20", "singular"):
        with pytest.raises(AssertionError):
            check_quality(Nonsense(), problem_of(make_case(kind), uneven_grid, "activation"))


def test_hard_inputs_give_finite_weights(
    solver: Any, structure: Structure, make_case: Callable[..., Any]
) -> None:
    """One row or column, and a metric whose rows hang together."""
    solver = shortened(solver)
    for kind in ("outliers100", "dead", "all dead", "singular", "zero", "one row", "one column"):
        case = make_case(kind)
        if not fitting(structure, case):
            continue
        for two_sided in (False, True):
            problem = problem_of(case, structure, "activation", two_sided=two_sided)
            solution = solver.solve(problem)
            assert bool(torch.isfinite(solution.encode(structure).dense(torch.float32)).all()), kind


def test_threads_change_nothing(solver: Any, structure: Structure, make_case: Callable[..., Any]) -> None:
    problem, solver = problem_of(make_case("plain"), structure, "activation"), shortened(solver)
    one = solver.solve(problem).theta
    torch.set_num_threads(3)
    try:
        three = solver.solve(replace(problem, factors=FactorCache())).theta
    finally:
        torch.set_num_threads(1)
    assert torch.allclose(one, three, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MOVE_CODES)
def test_solvers_that_move_codes_serve_uneven_values(name: str, uneven_grid: Any) -> None:
    assert unmet(find("solver", name)(), uneven_grid) == []


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_is_typed_by_what_it_requires(name: str) -> None:
    """``requires`` is what a recipe is checked by, the annotation what mypy checks by: they are the same."""
    cls = find("solver", name)
    kind = "block" if getattr(cls, "scope", "weight") == "block" else "problem"
    (structure,) = get_args(get_type_hints(cls.solve)[kind])
    residual = get_args(structure)
    assert cls.requires is getattr(structure, "__origin__", structure)
    assert residual in ((), (getattr(cls, "requires_residual", Structure),))


def test_a_solver_is_named_as_in_a_recipe() -> None:
    assert all(Method(name=name).name == name for name in SOLVERS)
