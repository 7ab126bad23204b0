"""ggml's block grids: fitted near, packed exactly, and served by the solvers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compress_kernels.layouts import BLOCK_TYPES
from torch import Tensor

from compress.linalg.block_scales import BlockParameters, group_errors, round_scales, search_groups
from compress.linalg.factor_cache import FactorCache
from compress.recipe.recipe import Recipe
from compress.score.metric import Kron, Side
from compress.score.statistics import Statistics
from compress.solvers.base import Problem
from compress.solvers.coordinate_descent import CoordinateDescent
from compress.solvers.gptq import GPTQ
from compress.solvers.group_scales import GroupScales
from compress.solvers.nearest import Nearest
from compress.solvers.yaqa import YAQA
from compress.structures.base import HasElements, HasGroups, HasShifts
from compress.structures.grids.k_quants import GGUFGrid

gguf = pytest.importorskip("gguf")
K_QUANTS = ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs"]


def weight(out: int = 16, columns: int = 512) -> Tensor:
    torch.manual_seed(0)
    return 0.05 * torch.randn(out, columns) * (1 + torch.rand(out, columns // 32).repeat_interleave(32, 1))


def metric(columns: int = 512, tokens: int = 900, left: int | None = None) -> Kron:
    torch.manual_seed(1)
    inputs = torch.randn(tokens, columns) @ (
        torch.eye(columns) + 0.5 * torch.randn(columns, columns) / columns**0.5
    )
    inputs *= torch.logspace(-1, 1, columns)[torch.randperm(columns)]
    right = Side(inputs.T @ inputs / tokens)
    if left is None:
        return Kron(right=right)
    gradients = torch.randn(64, left)
    return Kron(Side(gradients.T @ gradients / 64), right)


def problem(grid: GGUFGrid, own: Kron) -> Problem[GGUFGrid]:
    statistics = Statistics(tokens=900, gram=own.right.matrix)
    return Problem(weight(), grid, own, statistics, 0, FactorCache())


def dequantized(packed: Tensor, name: str) -> Tensor:
    return torch.from_numpy(gguf.quants.dequantize(packed.numpy(), gguf.GGMLQuantizationType[name.upper()]))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_what_is_packed_is_what_was_projected_to_the_last_bit(name: str) -> None:
    grid, own = GGUFGrid(name), metric()
    parameters = grid.fit(weight(), own)
    theta = grid.project(weight(), parameters)
    packed = grid.encode(theta, parameters)
    assert torch.equal(packed.dense(torch.float32), theta)
    assert torch.equal(dequantized(packed.tensors["weight_blocks"], name), theta)


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4"])
def test_plain_rounding_is_nearer_than_the_package_ggufs_own(name: str) -> None:
    values, grid = weight(), GGUFGrid(name)
    kind = gguf.GGMLQuantizationType[name.upper()]
    theirs = gguf.quants.dequantize(gguf.quants.quantize(values.numpy(), kind), kind)
    flat = Kron(right=Side(torch.eye(values.shape[1])))
    ours = grid.project(values, grid.fit(values, flat))
    assert float((ours - values).square().sum()) <= float(np.square(theirs - values.numpy()).sum())


@pytest.mark.parametrize("name", K_QUANTS)
def test_a_k_quant_costs_hardly_more_than_free_steps_would(name: str) -> None:
    """Integer scales and minima add little to the error of groups with fp32 steps of their own."""
    values, grid = weight(), GGUFGrid(name)
    grouped = values.view(-1, grid.kind.group)
    free = group_errors(
        grid.kind,
        grouped,
        torch.ones_like(grouped),
        *search_groups(grid.kind, grouped, torch.ones_like(grouped)),
    )
    flat = Kron(right=Side(torch.eye(values.shape[1])))
    theta = grid.project(values, grid.fit(values, flat))
    limit = {"q2_k": 1.35, "q3_k": 1.25}.get(name, 1.15)
    assert float((theta - values).square().sum()) <= limit * float(free.sum())


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_rounders_give_the_projection(name: str) -> None:
    grid, own, values = GGUFGrid(name), metric(), weight()
    parameters = grid.fit(values, own)
    shape = (values.shape[0], values.shape[1])
    theta = grid.project(values, parameters)
    columns, rows = grid.column_rounder(parameters, shape), grid.element_rounder(parameters, shape).slices()
    by_column = torch.stack([columns(values[:, j], j) for j in range(shape[1])], 1)
    by_row = torch.stack([rows(values[i], i) for i in range(shape[0])])
    for found in (by_column, by_row):  # a tie may go either way
        torch.testing.assert_close((found - values).abs(), (theta - values).abs(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "iq4_nl", "mxfp4", *K_QUANTS])
def test_solvers_lower_the_loss_one_after_the_other(name: str) -> None:
    own = metric()
    case = problem(GGUFGrid(name), own)
    losses = []
    solution = None
    for solver in (Nearest(), GPTQ(), GroupScales(), CoordinateDescent()):
        solution = solver.solve(case, None if isinstance(solver, GPTQ) else solution)
        losses.append(own.loss(case.weight - solution.theta))
        packed = case.structure.encode(solution.theta, solution.parameters)
        torch.testing.assert_close(packed.dense(torch.float32), solution.theta, rtol=1e-5, atol=1e-7)
    assert losses[1] < 0.8 * losses[0]
    assert losses[2] < losses[1]
    assert losses[3] <= losses[2]


@pytest.mark.parametrize("name", ["q4_k", "q3_k", "iq4_xs"])
def test_two_sided_rounding_lowers_the_two_sided_loss(name: str) -> None:
    own = metric(left=16)
    case = problem(GGUFGrid(name), own)
    start = GPTQ().solve(case)
    found = YAQA().solve(case, start)
    assert own.loss(case.weight - found.theta) < own.loss(case.weight - start.theta)


def test_a_group_keeps_the_scales_of_its_super_block() -> None:
    grid, values = GGUFGrid("q4_k"), weight()
    parameters = grid.fit(values, metric())
    one, own = grid.group(parameters, 3)
    assert isinstance(one, HasGroups)
    assert isinstance(one, HasElements)
    assert isinstance(one, HasShifts)
    trials = [*one.clipped(own, (0.9, 0.99, 1.01, 1.1)), *one.shifted(own)]
    for trial in trials:
        assert torch.equal(trial.scale, own.scale)
        changed = grid.with_group(parameters, 3, trial)
        assert parameters.scales is not None
        assert changed.scales is not None
        assert torch.equal(changed.scale, parameters.scale)
        assert torch.equal(changed.scales[:, 4:], parameters.scales[:, 4:])
    inner = (own.scales > 1) & (own.scales < 62)  # type: ignore[operator]
    assert all(bool((trial.scales != own.scales)[inner].all()) for trial in trials[:4])


def test_steps_of_either_sign_are_found() -> None:
    """Three bits reach one code further down than up: a group with its largest value above needs a negative step."""
    values = torch.zeros(1, 256)
    values[0, ::16], values[0, 1::16] = 0.4, -0.3
    grid = GGUFGrid("q3_k")
    parameters = grid.fit(values, Kron(right=Side(torch.eye(256))))
    torch.testing.assert_close(grid.project(values, parameters), values, rtol=0.01, atol=1e-4)


def test_zeros_and_dead_inputs_stay_finite() -> None:
    for name in BLOCK_TYPES:
        grid = GGUFGrid(name)
        own = Kron(right=Side(torch.zeros(256, 256)))
        parameters: BlockParameters = grid.fit(torch.zeros(2, 256), own)
        assert torch.equal(grid.project(torch.zeros(2, 256), parameters), torch.zeros(2, 256))
        noise = 1e-3 * torch.randn(2, 256)
        error = grid.project(noise, grid.fit(noise, own)) - noise
        assert float(error.norm()) < 0.4 * float(noise.norm())


def test_rounded_scales_are_the_best_of_what_is_tried() -> None:
    torch.manual_seed(3)
    target = torch.rand(50, 8)
    scale, codes = round_scales(target, torch.ones(50, 8), 0, 63)
    error = (scale.unsqueeze(1) * codes - target).square().sum(1)
    plain = (target / target.amax(1, keepdim=True) * 63).round() * target.amax(1, keepdim=True) / 63
    assert float(error.sum()) < float((plain - target).square().sum())


def test_a_width_that_does_not_fit_takes_the_type_of_llama_cpp_where_that_is_asked_for() -> None:
    assert GGUFGrid("q4_k", fallback=True).for_shape((4, 576)).type == "q5_0"
    assert GGUFGrid("q6_k", fallback=True).for_shape((4, 576)).type == "q8_0"
    assert GGUFGrid("q2_k", fallback=True).for_shape((4, 512)).type == "q2_k"
    assert GGUFGrid("q4_k").for_shape((4, 576)).type == "q4_k"
    with pytest.raises(ValueError, match="llama.cpp takes q5_0"):
        GGUFGrid("q4_k").layout((4, 576))


def test_a_recipe_names_the_type_alone() -> None:
    step = {"quantize": {"type": "q4_k"}, "solver": "gptq"}
    parsed = Recipe.parse({"name": "a", "steps": [step]}).steps[0].quantize
    assert parsed is not None
    assert (parsed.bits, parsed.group_size, parsed.symmetric) == (4, 32, False)
    for key, value in (("bits", 3), ("group_size", 64), ("scales", "mse")):
        with pytest.raises(Exception, match="takes 'fallback' and 'mix' alone"):
            Recipe.parse({"name": "a", "steps": [{"quantize": {"type": "q4_k", key: value}}]})
