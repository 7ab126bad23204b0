"""Solvers of masks against slow float64 references."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.linalg.admm import split
from compress.linalg.conjugate_gradient import refit
from compress.linalg.factor_cache import FactorCache
from compress.score.metric import Elementwise, Kron, Side
from compress.score.statistics import Statistics
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


def problem_of(case: Any, structure: Structure) -> Problem:
    gram = case.inputs.T @ case.inputs / len(case.inputs)
    statistics = Statistics(tokens=len(case.inputs), gram=gram, diagonal=gram.diagonal().clone())
    return Problem(case.weight, structure, Kron(right=Side(gram)), statistics)


def exact_values(weight: Tensor, mask: Tensor, gram: Tensor) -> Tensor:
    """Least squares on each row's mask by a dense solve in float64."""
    theta = torch.zeros(weight.shape, dtype=torch.float64)
    for i, kept in enumerate(mask):
        inner = gram.double()[kept][:, kept]
        theta[i, kept] = torch.linalg.lstsq(
            inner, gram.double()[kept] @ weight[i].double(), driver="gelsd"
        ).solution
    return theta


def test_wanda_keeps_the_largest_products_of_each_row(make_case: Callable[..., Any]) -> None:
    problem = problem_of(make_case("outliers20"), HALF)
    case = make_case("outliers20")
    score = case.weight.abs() * case.inputs.norm(dim=0)
    expected = score > score.median(1, keepdim=True).values
    found = Wanda().solve(problem)
    assert torch.equal(found.parameters.mask, expected)
    assert torch.equal(found.theta, case.weight * expected)


def test_saliencies_differ_and_a_seed_decides_the_random_one(make_case: Callable[..., Any]) -> None:
    problem = problem_of(make_case("outliers20"), HALF)
    magnitude = Wanda("magnitude").solve(problem).parameters.mask
    assert not torch.equal(magnitude, Wanda().solve(problem).parameters.mask)
    one, two = (Wanda("random").solve(problem).parameters.mask for _ in range(2))
    assert torch.equal(one, two)


@pytest.mark.parametrize("kind", ["plain", "outliers20", "outliers100", "dead"])
def test_refit_is_least_squares(make_case: Callable[..., Any], kind: str) -> None:
    problem = problem_of(make_case(kind), HALF)
    assert isinstance(problem.metric, Kron)
    start = Wanda().solve(problem)
    found = Refit(steps=300).solve(problem, start)
    gram = problem.metric.right.full(64, "cpu")
    exact = exact_values(problem.weight, start.parameters.mask, gram)
    reference = problem.metric.loss(problem.weight - exact.float())
    assert problem.metric.loss(problem.weight - found.theta) <= reference * (1 + 1e-4)
    assert torch.equal(found.theta != 0, start.parameters.mask & (found.theta != 0))


def test_refit_never_rises_and_survives_a_singular_gram(hard: Any) -> None:
    structure = HALF if hard.weight.shape[1] > 1 else Masked(Unstructured(0.0), torch.float32)
    problem = problem_of(hard, structure)
    mask = structure.pattern.choose(hard.weight.square())
    losses = [
        problem.metric.loss(hard.weight - refit(hard.weight, mask, problem.metric, hard.weight, steps=steps))
        for steps in (0, 1, 2, 4, 8, 32)
    ]
    slack = 1e-5 * problem.metric.loss(hard.weight)
    assert all(after <= before + slack for before, after in itertools.pairwise(losses))


def test_refit_in_a_two_sided_metric(make_case: Callable[..., Any]) -> None:
    case = make_case(out=6, columns=16)
    spread = torch.randn(6, 40, generator=torch.Generator().manual_seed(3))
    left, right = spread @ spread.T / 40, case.inputs.T @ case.inputs / len(case.inputs)
    mask = Unstructured(0.5).choose(case.weight.square())
    found = refit(case.weight, mask, Kron(Side(left), Side(right)), case.weight, steps=400, tolerance=1e-7)
    whole = torch.kron(left.double(), right.double())
    kept = mask.flatten()
    exact = torch.zeros(6 * 16, dtype=torch.float64)
    exact[kept] = torch.linalg.solve(whole[kept][:, kept], whole[kept] @ case.weight.double().flatten())
    assert torch.allclose(found.double().flatten(), exact, atol=1e-4)


def test_refit_leaves_an_elementwise_metric_alone(make_case: Callable[..., Any]) -> None:
    case = make_case()
    mask = Unstructured(0.5).choose(case.weight.square())
    found = refit(case.weight, mask, Elementwise(torch.rand_like(case.weight)), case.weight, steps=5)
    assert torch.equal(found, case.weight * mask)


def slow_sparsegpt(
    weight: Tensor, gram: Tensor, pattern: SparsityPattern, block: int, damping: float
) -> tuple[Tensor, Tensor]:
    """The same by the book: an explicit inverse of what is left, column by column, in float64."""
    weight, gram = weight.double().clone(), gram.double()
    shape = (weight.shape[0], weight.shape[1])
    gram = gram + damping * gram.diagonal().mean() * torch.eye(shape[1], dtype=torch.float64)
    mask = torch.zeros(shape, dtype=torch.bool)
    for j in range(shape[1]):
        if j % block == 0:
            # U_kk² of column k is the first diagonal entry of the inverse of the matrix from k on.
            pivots = torch.stack([torch.linalg.inv(gram[k:, k:])[0, 0] for k in range(j, j + block)])
            cost = (weight[:, j : j + block].square() / pivots).float()
            mask[:, j : j + block] = pattern.columns_block(cost, j, shape)
        inverse = torch.linalg.inv(gram[j:, j:])
        error = weight[:, j] * ~mask[:, j]
        weight[:, j + 1 :] -= torch.outer(error / inverse[0, 0], inverse[0, 1:])
        weight[:, j] *= mask[:, j]
    return weight, mask


@pytest.mark.parametrize(
    ("structure", "block", "choice"),
    [(HALF, 16, 16), (Masked(Unstructured(0.5, "layer"), torch.float32), 32, 32), (TWO_FOUR, 16, 4)],
)
def test_sparsegpt_is_the_recursion(
    make_case: Callable[..., Any], structure: Masked, block: int, choice: int
) -> None:
    problem = problem_of(make_case(out=8, columns=32), structure)
    assert isinstance(problem.metric, Kron)
    theta, mask = slow_sparsegpt(
        problem.weight, problem.metric.right.full(32, "cpu"), structure.pattern, choice, 0.01
    )
    found = SparseGPT(block=block).solve(problem)
    assert torch.equal(found.parameters.mask, mask)
    assert torch.allclose(found.theta.double(), theta, atol=1e-5)


def slow_admm(weight: Tensor, gram: Tensor, pattern: SparsityPattern, steps: int) -> Tensor:
    """ADMM with a linear solve each time, in float64."""
    root = gram.double().diagonal().sqrt()
    normalised = gram.double() / root / root.unsqueeze(1)
    target = weight.double() * root
    point, dual, penalty = target, torch.zeros_like(target), 0.1
    before = pattern.choose(target.square().float())
    for step in range(1, steps + 1):
        left = normalised + penalty * torch.eye(len(root), dtype=torch.float64)
        free = torch.linalg.solve(left, (target @ normalised - dual + penalty * point).T).T
        mask = pattern.choose((free + dual / penalty).square().float())
        point = (free + dual / penalty) * mask
        dual = dual + penalty * (free - point)
        if step % 3 == 0:
            changed = int((mask & ~before).sum()) / int(mask.sum())
            if changed == 0:
                break
            penalty *= 1.3 if changed > 0.1 else 1.2 if changed > 0.005 else 1.1
            before = mask
    return mask


@pytest.mark.parametrize("pattern", [Unstructured(0.5), Unstructured(0.7, "layer"), NM(2, 4)], ids=str)
def test_splitting_is_admm(make_case: Callable[..., Any], pattern: SparsityPattern) -> None:
    case = make_case("outliers20")
    gram = case.inputs.T @ case.inputs / len(case.inputs)
    found = split(case.weight, Kron(right=Side(gram)), pattern.choose, 60, FactorCache())
    reference = slow_admm(case.weight, gram, pattern, 60)
    # A tie in the last bit may fall either way.
    assert int((found != reference).sum()) <= 4


@pytest.mark.parametrize("kind", ["plain", "outliers20", "outliers100"])
@pytest.mark.parametrize("structure", [HALF, TWO_FOUR, Masked(Unstructured(0.7), torch.float32)], ids=str)
def test_each_better_solver_is_better(make_case: Callable[..., Any], kind: str, structure: Masked) -> None:
    problem = problem_of(make_case(kind, out=48, columns=64), structure)

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
    assert error(ALPS(refine=100)) >= awp * (1 - 1e-4)
    assert wanda_refit > awp


def test_awp_steps_are_projected_gradient_steps(make_case: Callable[..., Any]) -> None:
    problem = problem_of(make_case("plain"), HALF)
    assert isinstance(problem.metric, Kron)
    gram, weight = problem.metric.right.full(64, "cpu").double(), problem.weight.double()
    step = 1 / (1.02 * torch.linalg.eigvalsh(gram).max())
    plain = AWP(steps=10, begin="nearest", normalise=False, momentum=False, refit=0)
    theta = Wanda().solve(problem).theta.double()
    for _ in range(10):
        moved = theta + step * (weight - theta) @ gram
        theta = moved * Unstructured(0.5).choose(moved.square().float())
    found = problem.relative_error(plain.solve(problem).theta)
    assert found == pytest.approx(problem.relative_error(theta.float()), rel=2e-3)


@pytest.mark.parametrize("structure", [HALF, TWO_FOUR, IntegerGrid(3, 16, False)], ids=str)
def test_more_steps_of_awp_never_harm(make_case: Callable[..., Any], structure: Structure) -> None:
    problem = problem_of(make_case("outliers20"), structure)
    errors = [problem.relative_error(AWP(steps=steps).solve(problem).theta) for steps in (0, 5, 20, 60)]
    # The refit that ends each run is done to a tolerance.
    assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(errors))


@pytest.mark.parametrize("pattern", [Unstructured(0.5), NM(2, 4)], ids=str)
def test_joint_beats_one_after_the_other_and_keeps_the_pattern(
    make_case: Callable[..., Any], pattern: SparsityPattern
) -> None:
    case = make_case(out=48, columns=64)
    joint = problem_of(case, MaskedGrid(pattern, IntegerGrid(4, 16, False)))
    pruned = SparseGPT().solve(problem_of(case, Masked(pattern, torch.float32)))
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


def test_values_handed_on_unrounded_lie_on_the_mask_alone(make_case: Callable[..., Any]) -> None:
    structure = MaskedGrid(NM(2, 4), IntegerGrid(4, 16, False))
    problem = problem_of(make_case("plain"), structure)
    free = SparseGPT(round=False).solve(problem)
    alone = SparseGPT().solve(problem_of(make_case("plain"), TWO_FOUR))
    assert torch.allclose(free.theta, alone.theta, atol=1e-6)
    rounded = SparseGPT(refit=0).solve(problem, free)
    assert torch.equal(rounded.parameters.mask, free.parameters.mask)
    assert torch.allclose(rounded.encode(structure).dense(torch.float32), rounded.theta, atol=1e-6)
