"""What solvers share: the target that answers the dense outputs, batches to judge by, factorisations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.score.metric import Elementwise
from compress.score.statistics import Statistics
from compress.solvers.base import BlockProblem, Problem, asymmetric_target, output_error, split_batches
from compress.structures.grids.integer import IntegerGrid


def test_the_target_answers_the_dense_outputs_best(make_case: Callable[..., Any]) -> None:
    case = make_case(out=6, columns=16, tokens=400)
    problem = case.problem(IntegerGrid(4, 16))
    wanted = case.dense.double() @ case.weight.double().T
    exact = torch.linalg.lstsq(case.inputs.double(), wanted).solution.T
    target = asymmetric_target(problem, 1e-8)
    torch.testing.assert_close(target.double(), exact, rtol=0, atol=1e-5)
    assert float((target - case.weight).norm()) > 0.01 * float(case.weight.norm())


def test_the_same_inputs_leave_the_weight_where_it_is(make_case: Callable[..., Any]) -> None:
    case = make_case(out=6, columns=16, tokens=400)
    same = replace(case, dense=case.inputs).problem(IntegerGrid(4, 16))
    torch.testing.assert_close(asymmetric_target(same, 0.01), case.weight, rtol=0, atol=1e-5)


def test_without_dense_inputs_the_target_is_the_weight(make_case: Callable[..., Any]) -> None:
    problem = make_case().problem(IntegerGrid(4, 16))
    blind = replace(problem, statistics=Statistics(tokens=5))
    unseen = replace(problem, statistics=replace(problem.statistics, tokens=0))
    elements = replace(problem, metric=Elementwise(torch.ones_like(problem.weight)))
    assert all(asymmetric_target(p, 0.01) is p.weight for p in (blind, unseen, elements))


def test_roots_are_shared_by_problems_of_one_cache(make_case: Callable[..., Any]) -> None:
    problem = make_case().problem(IntegerGrid(4, 16))
    other = replace(problem, weight=2 * problem.weight)
    alone = make_case().problem(IntegerGrid(4, 16))
    root = problem.input_root(0.01, descending=True)
    assert other.input_root(0.01, descending=True) is root
    assert alone.input_root(0.01, descending=True) is not root
    assert torch.equal(alone.input_root(0.01, descending=True).root, root.root)


@pytest.mark.parametrize(
    ("batches", "judged", "expected"),
    [
        (1, 0.1, ([0], [0])),
        (2, 0.1, ([0], [1])),
        (8, 0.25, ([0, 1, 2, 3, 4, 5], [6, 7])),
        (4, 0.99, ([0], [1, 2, 3])),
    ],
)
def test_batches_to_train_on_and_to_judge_by(batches: int, judged: float, expected: Any) -> None:
    assert split_batches(batches, judged) == expected


def test_the_error_of_a_blocks_output_is_relative_to_the_dense_one() -> None:
    def run(batch: int, thetas: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        target = torch.full((1, 2, 2), float(batch + 1))
        return target + thetas["a"], target

    problem = Problem(torch.zeros(2, 2), IntegerGrid(4, "channel"), Elementwise(torch.ones(2, 2)))
    block = BlockProblem({"a": problem}, 3, run)
    assert output_error(block, {"a": torch.full((1, 2, 2), 0.5)}, [0, 1]) == pytest.approx(2 * 0.25 / (1 + 4))
    assert output_error(block, {"a": torch.zeros(1, 2, 2)}, [2]) == 0.0
