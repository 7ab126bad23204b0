"""From a recipe's step to its methods: what is built, and the sentence that refuses what does not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from compress.errors import UserError
from compress.planning.methods import CAPABILITIES, Methods, methods_of, unmet
from compress.recipe.recipe import Recipe, shipped
from compress.recipe.registry import SOLVERS, find
from compress.recipe.sections import Step
from compress.score.metric import Elementwise, Kron, Side
from compress.score.statistics import Statistics
from compress.solvers.base import Problem, Solution
from compress.solvers.oats import OATS
from compress.solvers.residual import ResidualSolver
from compress.structures.base import HasCodes, HasColumns, Selects, Structure
from compress.structures.grids.integer import IntegerGrid
from compress.structures.grids.nf4 import NF4Grid
from compress.structures.low_rank.factors import Factors
from compress.structures.low_rank.sums import FactorsAnd, FactorsAndColumns
from compress.structures.sparse.masked import Masked
from compress.structures.sparse.masked_grid import MaskedGrid
from compress.structures.sparse.patterns import Unstructured

GRID = {"bits": 4, "group_size": 16}


def build(**step: Any) -> Methods:
    return methods_of(Step.model_validate(step), torch.bfloat16)


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_builds(name: str) -> None:
    for step in Recipe.load(name).steps:
        methods = methods_of(step, torch.bfloat16)
        solvers = (*methods.solvers, *methods.block_solvers)
        assert not any(unmet(solver, methods.structure) for solver in solvers)


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        ({"quantize": GRID, "solver": "wanda"}, r"'wanda' cannot .* needs a sparsity pattern \('prune'\)"),
        ({"prune": {"sparsity": 0.5}, "solver": "yaqa"}, r"needs elements .* \('quantize'\) and scales"),
        ({"prune": {"sparsity": 0.5}, "quantize": GRID, "solver": "adaround"}, "codes for each element"),
        ({"lowrank": {"rank": 4}, "solver": "gptq"}, "columns that can be rounded one at a time"),
        ({"lowrank": {"rank": 4}, "solver": "lost"}, r"factors and kept columns \('lowrank.columns'\)"),
        ({"lowrank": {"rank": 4}, "quantize": GRID, "solver": "oats"}, r"a sparsity pattern \('prune'\)"),
        ({"quantize": GRID, "solver": "signround", "lowrank": {"rank": 4}}, "codes for each element"),
        ({"quantize": GRID, "solver": ["signround", "gptq"]}, "blocks comes after those of single weights"),
        ({"quantize": GRID, "solver": "gtpq"}, "no solver called 'gtpq'; did you mean 'gptq'"),
        ({"quantize": GRID, "solver": "regroup"}, "did you mean 'group_scales'"),
        ({"quantize": GRID, "solver": {"name": "gptq", "order": "activation"}}, "did you mean 'act_order'"),
        ({"quantize": GRID, "solver": {"name": "gptq", "shrink": [1]}}, "did you mean 'clip_ratios'"),
        (
            {"quantize": GRID, "solver": {"name": "gptq", "asymmetric": "qronos"}},
            "no option 'asymmetric'; did you mean the step's key 'true_input_target'",
        ),
        (
            {"quantize": GRID, "solver": {"name": "gptq", "input_correction": "gptaq"}},
            "'input_correction' needs 'true_input_target: true'",
        ),
        (
            {"quantize": GRID, "solver": {"name": "gptq", "damping": "much"}},
            r"solver 'gptq', option 'damping': input should be a valid number.*, not 'much'",
        ),
        (
            {"quantize": GRID, "solver": {"name": "gptq", "clip_ratios": 0.9}},
            r"option 'clip_ratios': input should be a list, not 0\.9",
        ),
        (
            {"quantize": GRID, "solver": {"name": "gptq", "clip_ratios": [1.5]}},
            r"solver 'gptq': clip_ratios is a list of ratios above 0 and up to 1",
        ),
        ({"quantize": GRID, "true_input_target": True}, r"does not go with solver \[nearest\]"),
        (
            {"quantize": GRID, "solver": ["nearest", "gptq"], "score": "fisher-diagonal"},
            "solver 'gptq' does not go with score 'fisher-diagonal', which counts every element alone",
        ),
        (
            {
                "quantize": GRID,
                "lowrank": {"rank": 4},
                "solver": ["yaqa", "eora"],
                "score": "fisher-diagonal",
            },
            "solver 'yaqa' does not go with score 'fisher-diagonal'",
        ),
        (
            {"quantize": GRID, "solver": "awp", "score": "fisher-diagonal", "true_input_target": True},
            "'true_input_target' does not go with score 'fisher-diagonal'",
        ),
        ({}, "a step needs 'quantize', 'prune' or 'lowrank'"),
        (
            {"lowrank": {"ratio": 0.3, "allocate": "energy"}, "quantize": GRID, "solver": ["gptq", "eora"]},
            "does not go with solver 'eora', only with weighted_svd, lost, oats",
        ),
    ],
)
def test_refusals(step: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build(**step)


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_that_do_not_ask_for_a_two_sided_metric_take_an_elementwise_one(name: str) -> None:
    solver = find("solver", name)()
    if getattr(solver, "scope", "weight") == "block" or getattr(solver, "two_sided", False):
        return
    weight = torch.randn(24, 32, generator=torch.Generator().manual_seed(0))
    structures: tuple[Structure, ...] = (
        IntegerGrid(4, 16), Masked(Unstructured(0.5)), Factors(rank=4), FactorsAndColumns(Factors(0.6), 0.1),
        FactorsAnd(Factors(rank=4, inside=True), Masked(Unstructured(0.6))),
    )  # fmt: skip
    served = [structure for structure in structures if not unmet(solver, structure)]
    assert served
    for structure in served:
        problem = Problem(
            weight, structure, Elementwise(torch.rand_like(weight)), Statistics(diagonal=torch.ones(32))
        )
        assert bool(torch.isfinite(solver.solve(problem).theta).all())


def test_every_requirement_of_the_registry_has_words() -> None:
    nothing: Any = object()
    for name in SOLVERS:
        solver = find("solver", name)()
        assert all(word in CAPABILITIES.values() for word in unmet(solver, nothing)), name
        assert unmet(solver, nothing) or solver.requires is Structure, name


@pytest.mark.parametrize(
    ("structure", "has", "lacks"),
    [
        (IntegerGrid(4), (HasColumns, HasCodes), (Selects,)),
        (Masked(Unstructured(0.5)), (HasColumns, Selects), (HasCodes,)),
        (MaskedGrid(Unstructured(0.5), IntegerGrid(4)), (HasColumns, Selects), (HasCodes,)),
        (NF4Grid(), (HasColumns,), (Selects,)),
        (Factors(rank=4), (Structure,), (HasColumns, HasCodes, Selects)),
    ],
    ids=str,
)
def test_capabilities(structure: Structure, has: tuple[type, ...], lacks: tuple[type, ...]) -> None:
    assert all(isinstance(structure, protocol) for protocol in has)
    assert not any(isinstance(structure, protocol) for protocol in lacks)


def test_the_true_input_target_asks_for_the_cross_moment() -> None:
    assert "cross" in build(quantize=GRID, solver="gptq", true_input_target=True).needs
    assert "cross" not in build(quantize=GRID, solver="gptq").needs


def test_in_a_sum_solvers_of_the_residual_are_wrapped() -> None:
    methods = build(quantize=GRID, lowrank={"rank": 4}, solver=["gptq", "eora"])
    assert isinstance(methods.solvers[0], ResidualSolver)
    assert not isinstance(methods.solvers[1], ResidualSolver)
    sparse = build(prune={"sparsity": 0.5}, lowrank={"rank": 4}, solver="oats")
    assert isinstance(sparse.solvers[0], OATS)


def test_options_get_the_types_of_the_solvers_fields() -> None:
    options = {"name": "gptq", "clip_ratios": [1, 0.9], "damping": 0}
    (solver,) = build(quantize=GRID, solver=options).solvers
    assert solver == find("solver", "gptq")(clip_ratios=(1.0, 0.9), damping=0.0)
    assert hash(solver) == hash(find("solver", "gptq")(clip_ratios=(1.0, 0.9), damping=0.0))


class Recorder:
    """A solver that keeps the problem it was given."""

    requires = HasColumns
    needs: frozenset[str] = frozenset()
    score = "activation"
    problem: Problem[Any]

    def solve(self, problem: Problem[Any], start: Solution | None = None) -> Solution:
        self.problem = problem
        return Solution(
            torch.zeros_like(problem.weight), problem.structure.fit(problem.weight, problem.metric)
        )


def test_the_residual_of_a_true_input_target_is_the_target_less_the_factors(seeded: Tensor) -> None:
    """The factors run on the compressed inputs too: they are taken off the target, not off the weight before it is built."""
    structure = FactorsAnd(Factors(rank=4, inside=True), IntegerGrid(4, "channel"))
    parameters = structure.with_factors(seeded, Kron(), None, torch.zeros_like(seeded))
    solver, target = Recorder(), seeded + 1
    problem = Problem(seeded, structure, Kron(right=Side(torch.eye(32))), true_input=target)
    ResidualSolver(solver).solve(problem, Solution(parameters.factors.dense, parameters))
    assert torch.equal(solver.problem.target, target - parameters.factors.dense)
    assert torch.equal(solver.problem.weight, seeded - parameters.factors.dense)


@pytest.fixture
def seeded() -> Tensor:
    return torch.randn(24, 32, generator=torch.Generator().manual_seed(0))
