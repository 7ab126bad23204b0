"""What solvers share: the target, factorisations, and batches to judge by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.score.metric import Elementwise
from compress.solvers.base import BlockProblem, Problem, output_error, split_batches
from compress.structures.grids.integer import IntegerGrid


def test_the_target_is_the_weight_unless_there_is_another(make_case: Callable[..., Any]) -> None:
    case = make_case()
    plain, corrected = (case.problem(IntegerGrid(4, 16), true_input=given) for given in (False, True))
    assert plain.target is plain.weight
    assert corrected.target is corrected.true_input
    assert plain.relative_error(torch.zeros_like(case.weight)) == pytest.approx(1.0)
    assert corrected.relative_error(corrected.target) == 0.0
    assert corrected.relative_error(case.weight) > 0.0


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
