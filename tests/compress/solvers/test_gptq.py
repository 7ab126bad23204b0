"""GPTQ's default path against optimal brain surgery in float64, one column after the other and one inverse for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compress_kernels.layouts.nf4 import NF4_VALUES
from torch import Tensor

from compress.score.metric import Kron, Side
from compress.solvers.base import Problem
from compress.solvers.gptq import CLIP_RATIOS, GPTQ
from compress.structures.grids.integer import IntegerGrid
from compress.structures.grids.nf4 import NF4Grid


def surgery(
    weight: Tensor, gram: Tensor, order: list[int], allowed: Callable[[int, int], Tensor]
) -> tuple[Tensor, Tensor]:
    """Round the columns in ``order``; after each, the columns to come move by ``−(w_j − q_j) H⁻¹_jk / H⁻¹_jj``.

    ``H⁻¹`` is inverted anew for the columns that are left (OBQ, arXiv:2208.11580, eq. 3). ``allowed(row, column)`` are the
    values that an element may take. Returns the weight and what each row costs.
    """
    work, theta = weight.clone(), torch.zeros_like(weight)
    costs = torch.zeros(len(weight), dtype=torch.float64)
    for position, column in enumerate(order):
        left = torch.tensor(order[position:])
        inverse = torch.linalg.inv(gram[left[:, None], left])
        for row in range(len(weight)):
            values = allowed(row, column)
            theta[row, column] = values[(values - work[row, column]).abs().argmin()]
        error = work[:, column] - theta[:, column]
        costs += error.square() / inverse[0, 0]
        work[:, left[1:]] -= torch.outer(error, inverse[0, 1:] / inverse[0, 0])
    return theta, costs


def damped(gram: Tensor, damping: float) -> Tensor:
    gram = gram.double()
    return gram + damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)


def integer_values(weight: Tensor, bits: int, group: int, symmetric: bool, ratio: float) -> Tensor:
    """All values ``[out, groups, codes]`` of a min-max grid clipped to ``ratio`` of its range."""
    grouped = weight.double().view(len(weight), -1, group)
    if symmetric:  # the largest weight lies on the side that has one code more
        largest = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True)).squeeze(-1)
        step = -largest / 2 ** (bits - 1)
    else:
        low, high = grouped.amin(-1).clamp_max(0), grouped.amax(-1).clamp_min(0)
        step = (high - low) / (2**bits - 1)
    zero = torch.full_like(step, 2 ** (bits - 1)) if symmetric else (-low / step).round()
    codes = torch.arange(2**bits, dtype=torch.float64)
    return (codes - zero.unsqueeze(-1)) * (ratio * step).unsqueeze(-1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [5, 128])
@pytest.mark.parametrize("act_order", [True, False])
def test_every_row_takes_its_cheapest_range(
    make_case: Callable[..., Any], symmetric: bool, block: int, act_order: bool
) -> None:
    case = make_case("outliers20", out=12, columns=32, tokens=400)
    problem = case.problem(IntegerGrid(3, 8, symmetric, scale_dtype=torch.float32))
    ratios = (1.0, 0.9, 0.75, 0.6)
    gram = damped(problem.metric.right.matrix, 0.01)
    order = list(range(32))
    if act_order:
        order.sort(key=lambda column: -float(gram[column, column]))
    trials = []
    for ratio in ratios:
        values = integer_values(case.weight, 3, 8, symmetric, ratio)
        trials.append(surgery(case.weight.double(), gram, order, lambda r, c, v=values: v[r, c // 8]))
    costs = torch.stack([cost for _, cost in trials])
    expected = torch.stack([theta for theta, _ in trials])[costs.argmin(0), torch.arange(12)]
    assert len(set(costs.argmin(0).tolist())) > 2  # every range has to matter somewhere
    solver = GPTQ(clip_ratios=ratios, act_order=act_order, block=block)
    solution = solver.solve(problem)
    torch.testing.assert_close(solution.theta.double(), expected, rtol=0, atol=1e-5)
    # What is stored is what was found: the parameters are those of the range that each row took.
    again = problem.structure.project(solution.theta, solution.parameters)
    torch.testing.assert_close(again, solution.theta, rtol=0, atol=1e-6)
    losses = ((case.weight.double() - expected) @ gram * (case.weight.double() - expected)).sum(1)
    torch.testing.assert_close(costs.min(0).values, losses, rtol=1e-8, atol=0)


def test_grids_without_fits_try_ranges(make_case: Callable[..., Any]) -> None:
    case = make_case("outliers20", out=12, columns=32, tokens=400)
    problem = Problem(case.weight, NF4Grid(32), case.problem(IntegerGrid(4)).metric)
    spelled_out = GPTQ(damping=0.01, act_order=True, block=128, clip_ratios=(1.0, 0.94, 0.88, 0.82, 0.76))
    assert torch.equal(GPTQ().solve(problem).theta, spelled_out.solve(problem).theta)


@pytest.mark.parametrize("symmetric", [True, False])
def test_every_fit_counts_errors_as_the_recursion_does(
    make_case: Callable[..., Any], symmetric: bool
) -> None:
    case = make_case("outliers20", out=12, columns=32, tokens=400)
    grid = IntegerGrid(3, 8, symmetric, scale_dtype=torch.float32)
    problem = case.problem(grid)
    gram = damped(problem.metric.right.matrix, 0.01)
    order = sorted(range(32), key=lambda column: -float(gram[column, column]))
    root = torch.linalg.cholesky(torch.linalg.inv(gram[order][:, order]), upper=True)
    costs = torch.empty(32)
    costs[order] = root.diagonal().pow(-2).float()

    def rounded(parameters: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Values, what was rounded to them, and the losses of the rows, in float64."""
        work = case.weight.double().clone()
        values, losses = torch.zeros_like(work), torch.zeros(12, dtype=torch.float64)
        pushed = torch.zeros_like(work)
        codes = torch.arange(8, dtype=torch.float64)
        for place, column in enumerate(order):
            scale, zero = (each[:, column // 8].double() for each in (parameters.scale, parameters.zero))
            table = (codes - zero[:, None]) * scale[:, None]
            pushed[:, column] = work[:, column]
            near = (table - work[:, column, None]).abs().argmin(1)
            values[:, column] = table[torch.arange(12), near]
            error = (work[:, column] - values[:, column]) / root[place, place]
            losses += error.square()
            for later in range(place + 1, 32):
                work[:, order[later]] -= error * root[place, later]
        return values, pushed, losses

    first = grid.fit_to(case.weight, costs)
    values, pushed, losses = rounded(first)
    torch.testing.assert_close(GPTQ(fits=1).solve(problem).theta.double(), values, rtol=0, atol=1e-4)
    again, _, fewer = rounded(grid.fit_to(pushed.float(), costs, first))
    expected = torch.where((fewer < losses)[:, None], again, values)
    solution = GPTQ(fits=2).solve(problem)
    torch.testing.assert_close(solution.theta.double(), expected, rtol=0, atol=1e-4)
    assert 0 < int((fewer < losses).sum()) < 12  # both fits have to matter somewhere
    kept = problem.structure.project(solution.theta, solution.parameters)
    torch.testing.assert_close(kept, solution.theta, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["correlated", "outliers20"])
@pytest.mark.parametrize("bits", [2, 4])
def test_fits_lose_less_than_ranges(make_case: Callable[..., Any], kind: str, bits: int) -> None:
    problem = make_case(kind, out=24, columns=64, tokens=400).problem(IntegerGrid(bits, 16, False))
    lost = [
        float(problem.metric.loss(problem.weight - GPTQ(**options).solve(problem).theta))
        for options in ({"clip_ratios": (1.0,)}, {"clip_ratios": CLIP_RATIOS}, {"fits": 1}, {"fits": 3})
    ]
    assert lost[3] <= lost[2] * 1.001
    assert lost[3] < 0.98 * min(lost[:2])


def test_a_single_scale_for_all_rows_is_fitted_for_all(make_case: Callable[..., Any]) -> None:
    problem = make_case("outliers20", out=6, columns=16, tokens=200).problem(IntegerGrid(4, "tensor", True))
    solution = GPTQ().solve(problem)
    assert solution.parameters.scale.shape == (1, 1)
    torch.testing.assert_close(
        problem.structure.project(solution.theta, solution.parameters), solution.theta, rtol=0, atol=1e-6
    )


def test_a_single_scale_for_all_rows_takes_the_range_that_is_cheapest_for_all(
    make_case: Callable[..., Any],
) -> None:
    case = make_case("outliers20", out=6, columns=16, tokens=200)
    problem = case.problem(IntegerGrid(4, "tensor", True, scale_dtype=torch.float32))
    gram = damped(problem.metric.right.matrix, 0.01)
    order = sorted(range(16), key=lambda column: -float(gram[column, column]))
    step = -float(case.weight.flatten()[case.weight.abs().argmax()]) / 8
    codes = torch.arange(-8, 8, dtype=torch.float64)
    trials = [
        surgery(case.weight.double(), gram, order, lambda r, c, s=step * ratio: codes * s)
        for ratio in (1.0, 0.8, 0.5)
    ]
    best = min(trials, key=lambda trial: float(trial[1].sum()))[0]
    theta = GPTQ(clip_ratios=(1.0, 0.8, 0.5)).solve(problem).theta
    torch.testing.assert_close(theta.double(), best, rtol=0, atol=1e-5)


def test_nf4(make_case: Callable[..., Any]) -> None:
    case = make_case("outliers20", out=6, columns=64, tokens=400)
    problem = Problem(case.weight, NF4Grid(32), case.problem(IntegerGrid(4)).metric)
    gram = damped(problem.metric.right.matrix, 0.01)  # type: ignore[union-attr]
    order = sorted(range(64), key=lambda column: -float(gram[column, column]))
    table = torch.tensor(NF4_VALUES, dtype=torch.float64)
    trials = []
    for ratio in (1.0, 0.8):
        scale = ratio * case.weight.double().view(6, 2, 32).abs().amax(-1)
        trials.append(surgery(case.weight.double(), gram, order, lambda r, c, s=scale: table * s[r, c // 32]))
    costs = torch.stack([cost for _, cost in trials])
    expected = torch.stack([theta for theta, _ in trials])[costs.argmin(0), torch.arange(6)]
    theta = GPTQ(clip_ratios=(1.0, 0.8)).solve(problem).theta
    torch.testing.assert_close(theta.double(), expected, rtol=0, atol=1e-5)


def test_ranges_that_do_not_fit_in_memory_together_come_out_the_same(
    make_case: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = make_case("outliers20", out=24, columns=32, tokens=400).problem(IntegerGrid(3, 8, False))
    whole = GPTQ().solve(problem)
    for elements in (2 * 24 * 32, 5 * 32, 32):  # two ranges at once, five rows at once, one row at once
        monkeypatch.setattr("compress.solvers.gptq._ELEMENTS_AT_ONCE", elements)
        part = GPTQ().solve(problem)
        assert torch.equal(part.theta, whole.theta)
        assert torch.equal(part.parameters.scale, whole.parameters.scale)


def test_inputs_that_are_never_seen_are_rounded_to_nearest(make_case: Callable[..., Any]) -> None:
    case = make_case("dead", out=6, columns=32)
    grid = IntegerGrid(4, 8, True, scale_dtype=torch.float32)
    problem = Problem(case.weight, grid, Kron(right=Side(case.inputs.T @ case.inputs / len(case.inputs))))
    solution = GPTQ(clip_ratios=(1.0,)).solve(problem)
    nearest = grid.project(case.weight, grid.fit(case.weight, problem.metric))
    assert torch.equal(solution.theta[:, :8], nearest[:, :8])


def test_there_is_at_least_one_fit() -> None:
    with pytest.raises(ValueError, match="fits is a number of 1 or more"):
        GPTQ(fits=0)


@pytest.mark.parametrize("options", [{"clip_ratios": ()}, {"clip_ratios": (1.2,)}, {"clip_ratios": (0.0,)}])
def test_ratios_are_shares_of_the_fitted_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="clip_ratios"):
        GPTQ(**options)
