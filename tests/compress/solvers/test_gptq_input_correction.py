"""GPTAQ and Qronos against slow float64 loops over the columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.solvers.gptq import CLIP_RATIOS, GPTQ
from compress.structures.grids.integer import IntegerGrid

GRID = IntegerGrid(3, 16, False, scale_dtype=torch.float32)


def qronos(weight: Tensor, dense: Tensor, inputs: Tensor, rounder: Any) -> Tensor:
    """Column by column: round what is best for the column with the rest at rest, then solve for the rest by least squares."""
    theta = weight.clone()
    for j in range(weight.shape[1]):
        others = theta.clone()
        others[:, j] = 0
        left = dense @ weight.T - inputs @ others.T
        best = (inputs[:, j] @ left) / inputs[:, j].square().sum()
        theta[:, j] = rounder(best.float(), j).double()
        if j + 1 < weight.shape[1]:
            left = dense @ weight.T - inputs[:, : j + 1] @ theta[:, : j + 1].T
            theta[:, j + 1 :] = torch.linalg.lstsq(inputs[:, j + 1 :], left).solution.T
    return theta


def gptaq(weight: Tensor, gram: Tensor, cross: Tensor, alpha: float, rounder: Any) -> Tensor:
    root = torch.linalg.cholesky(torch.linalg.inv(gram), upper=True)
    drift = alpha * torch.triu((cross - gram) @ root.T, 1) @ root
    work, theta = weight.clone(), weight.clone()
    for j in range(weight.shape[1]):
        column = work[:, j].clone()
        theta[:, j] = rounder(column.float(), j).double()
        error = (column - theta[:, j]) / root[j, j]
        work[:, j + 1 :] += torch.outer(column, drift[j, j + 1 :]) - torch.outer(error, root[j, j + 1 :])
    return theta


@pytest.mark.parametrize("block", [7, 128])
def test_qronos(make_case: Callable[..., Any], block: int) -> None:
    case = make_case(out=6, columns=32, tokens=400)
    problem = case.problem(GRID, true_input=True)
    solver = GPTQ(act_order=False, damping=1e-7, block=block, clip_ratios=(1.0,))
    rounder = GRID.column_rounder(GRID.fit(case.weight, problem.metric), problem.shape)
    expected = qronos(case.weight.double(), case.dense.double(), case.inputs.double(), rounder)
    assert torch.allclose(solver.solve(problem).theta.double(), expected, atol=1e-5)


@pytest.mark.parametrize("block", [7, 128])
def test_gptaq(make_case: Callable[..., Any], block: int) -> None:
    case = make_case(out=6, columns=32, tokens=400)
    problem = case.problem(GRID, true_input=True)
    solver = GPTQ(
        input_correction="gptaq", alpha=0.5, act_order=False, damping=0.0, block=block, clip_ratios=(1.0,)
    )
    rounder = GRID.column_rounder(GRID.fit(case.weight, problem.metric), problem.shape)
    gram, cross = problem.statistics.gram.double(), problem.statistics.cross.double()
    expected = gptaq(case.weight.double(), gram, cross, 0.5, rounder)
    assert torch.allclose(solver.solve(problem).theta.double(), expected, atol=1e-5)


@pytest.mark.parametrize("correction", ["gptaq", "qronos"])
def test_hard_inputs(hard: Any, correction: str) -> None:
    problem = hard.problem(IntegerGrid(3, "channel", False), true_input=True)
    theta = GPTQ(input_correction=correction).solve(problem).theta
    assert bool(torch.isfinite(theta).all())


def test_corrects_for_the_inputs(make_case: Callable[..., Any]) -> None:
    case = make_case(tokens=4096)
    grid = IntegerGrid(4, 16, False)
    wanted = case.dense @ case.weight.T

    def error(solver: GPTQ, true_input: bool) -> float:
        theta = solver.solve(case.problem(grid, true_input=true_input)).theta
        return float((wanted - case.inputs @ theta.T).square().sum())

    plain = error(GPTQ(clip_ratios=CLIP_RATIOS), False)
    drifted = error(GPTQ(clip_ratios=CLIP_RATIOS, input_correction="gptaq"), True)
    assert error(GPTQ(clip_ratios=CLIP_RATIOS), True) < drifted < plain
    assert error(GPTQ(), True) < error(GPTQ(), False)


def test_an_unknown_correction_is_refused() -> None:
    with pytest.raises(ValueError, match="'gptaq' or 'qronos', not 'adam'"):
        GPTQ(input_correction="adam")  # type: ignore[arg-type]
