"""What a solver costs grows as its method says, and both sides of a metric cost more than one."""

from __future__ import annotations

import pytest

from compress.planning.solver_costs import _SOLVERS, solver_cost
from compress.planning.work import Cost, Work
from compress.recipe.registry import SOLVERS, find
from compress.system.machine import Machine

MACHINE = Machine({"float32": 10.0, "bfloat16": 20.0}, 100.0, 5.0, 4.0, {"GPTQ": 3.0})


def test_every_named_solver_exists() -> None:
    assert set(_SOLVERS) <= {find("solver", name).__name__ for name in SOLVERS}


def test_one_side() -> None:
    one = _SOLVERS["GPTQ"]
    found = solver_cost("GPTQ", (3, 7))
    assert found.seconds == pytest.approx(one.weight + 7 * one.column)
    assert found.products == pytest.approx(one.products * 3 * 49 + one.factor * 343)
    assert found.moved == one.element * 21


def test_both_sides() -> None:
    one = _SOLVERS["AWP"]
    found = solver_cost("AWP", (3, 7), both_sides=True)
    assert found.products == pytest.approx(one.products * (3 * 49 + 9 * 7) + one.factor * (343 + 27))


def test_the_time_of_a_cost_and_of_a_run() -> None:
    cost = Cost(1.0, 20.0, 300.0)
    assert cost.at(MACHINE) == 1.0 + 2.0 + 3.0
    assert (cost + cost).at(MACHINE) == 12.0
    work = Work("bfloat16", 40.0, 30.0, 500.0, {"GPTQ": cost, "AWP": cost}, 25.0, 16.0, 7.0)
    assert work.seconds(MACHINE) == 7.0 + 2.0 + 3.0 + 5.0 + 18.0 + 6.0 + 5.0 + 4.0
