"""Solvers of masks against each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from compress.solvers.alps import ALPS
from compress.solvers.awp import AWP
from compress.solvers.base import Problem
from compress.solvers.refit import Refit
from compress.solvers.sparsegpt import SparseGPT
from compress.solvers.wanda import Wanda
from compress.structures.base import SparsityPattern, Structure
from compress.structures.grids.integer import IntegerGrid
from compress.structures.sparse.masked import Masked
from compress.structures.sparse.masked_grid import MaskedGrid
from compress.structures.sparse.patterns import NM, Unstructured

HALF = Masked(Unstructured(0.5), torch.float32)
TWO_FOUR = Masked(NM(2, 4), torch.float32)


@pytest.mark.parametrize("kind", ["plain", "outliers20", "outliers100"])
@pytest.mark.parametrize("structure", [HALF, TWO_FOUR, Masked(Unstructured(0.7), torch.float32)], ids=str)
def test_each_better_solver_is_better(make_case: Callable[..., Any], kind: str, structure: Masked) -> None:
    problem = make_case(kind, out=48, columns=64).problem(structure)

    def error(*solvers: Any) -> float:
        solution = None
        for solver in solvers:
            solution = solver.solve(problem, solution)
        assert solution is not None
        assert int((solution.theta != 0).sum()) == structure.pattern.kept((48, 64))
        return problem.relative_error(solution.theta)

    awp, wanda_refit = error(AWP()), error(Wanda(), Refit())
    # Its damping is a share of the mean energy: with outliers SparseGPT may even lose to Wanda.
    assert error(Wanda("random")) > error(Wanda()) > awp
    assert error(SparseGPT()) > awp
    # The same split, with penalties that take it half the steps.
    assert error(ALPS(refine=100)) >= 0.98 * awp
    assert wanda_refit > awp


@pytest.mark.parametrize("pattern", [Unstructured(0.5), NM(2, 4)], ids=str)
def test_joint_beats_one_after_the_other_and_keeps_the_pattern(
    make_case: Callable[..., Any], pattern: SparsityPattern
) -> None:
    case = make_case(out=48, columns=64)
    joint = case.problem(MaskedGrid(pattern, IntegerGrid(4, 16, False)))
    pruned = SparseGPT().solve(case.problem(Masked(pattern, torch.float32)))
    later = SparseGPT(refit=0).solve(
        Problem(pruned.theta, joint.structure, joint.metric, joint.statistics), pruned
    )
    found = SparseGPT().solve(joint, AWP().solve(joint))
    assert joint.relative_error(found.theta) < 0.85 * joint.relative_error(later.theta)
    assert int(found.parameters.mask.sum()) == pattern.kept((48, 64))
    assert not bool(found.theta[~found.parameters.mask].any())


@pytest.mark.parametrize(
    "structure",
    [Masked(Unstructured(0.1), torch.float32), MaskedGrid(Unstructured(0.1), IntegerGrid(8, 16, False))],
)
def test_follows_the_true_input_target(make_case: Callable[..., Any], structure: Structure) -> None:
    case = make_case(tokens=4096)
    wanted = case.dense @ case.weight.T
    for solver in (AWP, SparseGPT, ALPS, Refit):
        errors = []
        for true_input in (False, True):
            theta = solver().solve(case.problem(structure, true_input=true_input)).theta
            errors.append(float((wanted - case.inputs @ theta.T).square().sum()))
        assert errors[1] < errors[0], solver
