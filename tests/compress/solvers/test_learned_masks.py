"""Learned masks on a small block of two linears with a nonlinearity between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.errors import UserError
from compress.planning.methods import methods_of
from compress.recipe.sections import Step
from compress.solvers.awp import AWP
from compress.solvers.base import BlockProblem, Solution
from compress.solvers.learned_masks import LearnedMasks, _Trained
from compress.solvers.wanda import Wanda
from compress.structures.base import HasPatterns
from compress.structures.sparse.masked import Masked
from compress.structures.sparse.patterns import NM, Unstructured

TWO_FOUR = Masked(NM(2, 4), torch.float32)


def block_of(
    make_case: Callable[..., Any], structure: Any = TWO_FOUR
) -> tuple[BlockProblem[Any], Callable[..., float]]:
    first = make_case("plain", out=32, columns=32, tokens=512)
    second = make_case("plain", out=16, columns=32, tokens=512)
    inputs = first.inputs.view(8, 64, 32)

    def forward(thetas: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        return torch.nn.functional.silu(5 * hidden @ thetas["up"].T) @ thetas["down"].T

    dense = {"up": first.weight, "down": second.weight}
    targets = forward(dense, inputs)

    def run(batch: int, thetas: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return forward(thetas, inputs[batch : batch + 1]), targets[batch : batch + 1]

    problems = {"up": first.problem(structure), "down": second.problem(structure)}

    def error(solutions: Mapping[str, Solution]) -> float:
        thetas = {name: solution.theta for name, solution in solutions.items()}
        return float((forward(thetas, inputs) - targets).square().sum() / targets.square().sum())

    return BlockProblem(problems, 8, run), error


def starts_of(block: BlockProblem[Any], solver: Any) -> dict[str, Solution]:
    return {name: solver.solve(problem) for name, problem in block.problems.items()}


def test_lowers_the_error_of_the_output_and_keeps_the_pattern(make_case: Callable[..., Any]) -> None:
    block, error = block_of(make_case)
    for solver, share in ((Wanda(), 0.6), (AWP(), 0.9)):
        starts = starts_of(block, solver)
        kept = {name: start.theta.clone() for name, start in starts.items()}
        found = LearnedMasks(value_rate=0.01).solve(block, starts)
        assert error(found) < share * error(starts)
        assert all(torch.equal(starts[name].theta, theta) for name, theta in kept.items())
        for solution in found.values():
            mask = TWO_FOUR.mask_of(solution.parameters)
            assert bool((mask.view(-1, 4).sum(1) == 2).all())
            assert torch.equal(solution.theta * mask, solution.theta)
            torch.testing.assert_close(solution.encode(TWO_FOUR).dense(torch.float32), solution.theta)


def test_masks_alone_are_learned_where_values_are_frozen(make_case: Callable[..., Any]) -> None:
    block, error = block_of(make_case)
    starts = starts_of(block, Wanda())
    found = LearnedMasks(value_rate=0.0).solve(block, starts)
    assert error(found) < 0.9 * error(starts)
    for name, solution in found.items():
        mask = TWO_FOUR.mask_of(solution.parameters)
        torch.testing.assert_close(solution.theta, block.problems[name].weight * mask)
        assert not torch.equal(mask, TWO_FOUR.mask_of(starts[name].parameters))


@pytest.mark.parametrize("structure", [TWO_FOUR, Masked(NM(1, 4), torch.float32), Masked(NM(4, 8))], ids=str)
def test_begins_at_its_start(make_case: Callable[..., Any], structure: Any) -> None:
    block, _ = block_of(make_case, structure)
    for name, start in starts_of(block, AWP()).items():
        first = _Trained.begin(LearnedMasks(), block.problems[name], start).solution()
        assert torch.equal(first.parameters.mask, start.parameters.mask)
        torch.testing.assert_close(first.theta, start.theta)


def test_the_gradient_of_the_logits_is_that_of_autograd(make_case: Callable[..., Any]) -> None:
    block, _ = block_of(make_case)
    problem = block.problems["up"]
    trained = _Trained.begin(LearnedMasks(noise=0.0, temperature=(0.5, 0.5)), problem, Wanda().solve(problem))
    logits = trained.logits.double().requires_grad_()
    soft = torch.einsum("koi,kg->oig", (logits / 0.5).softmax(0), trained.patterns.double()).reshape(32, 32)
    gradient = torch.randn(soft.shape, generator=torch.Generator().manual_seed(1))
    (expected,) = torch.autograd.grad((soft * gradient).sum(), logits)
    before = trained.logits.clone()
    trained.theta(0.0).sum().backward()
    assert trained.soft is not None
    torch.testing.assert_close(trained.soft.detach(), soft.float().detach())
    trained.soft.grad = gradient
    assert trained.update(0.0)
    clear = expected.abs() > 1e-6
    assert torch.equal((before - trained.logits).sign()[clear], expected.sign()[clear].float())


def test_a_loss_that_is_not_finite_keeps_the_start(make_case: Callable[..., Any]) -> None:
    block, _ = block_of(make_case)
    starts = starts_of(block, AWP())

    def run(batch: int, thetas: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        output, target = block.run(batch, thetas)
        return (output * float("inf") if thetas["up"].requires_grad else output), target

    found = LearnedMasks(steps=4).solve(BlockProblem(block.problems, 8, run), starts)
    assert all(torch.equal(found[name].theta, starts[name].theta) for name in starts)
    assert "step 1" in str(found["down"].info["stopped"])


def test_patterns_of_few_choices_alone_are_served() -> None:
    assert isinstance(TWO_FOUR, HasPatterns)
    assert TWO_FOUR.patterns.shape == (6, 4)
    assert bool((TWO_FOUR.patterns.sum(1) == 2).all())
    assert len(TWO_FOUR.patterns.unique(dim=0)) == 6
    assert not isinstance(Masked(Unstructured(0.5)), HasPatterns)
    assert not isinstance(Masked(NM(8, 16)), HasPatterns)
    solver = ["awp", "learned_masks"]
    step = Step.model_validate({"prune": {"pattern": "2:4"}, "solver": solver})
    assert len(methods_of(step, torch.bfloat16).block_solvers) == 1
    for prune in ({"sparsity": 0.5}, {"pattern": "8:16"}):
        with pytest.raises(UserError, match="pattern n:m"):
            methods_of(Step.model_validate({"prune": prune, "solver": solver}), torch.bfloat16)


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"temperature": (0.1, 1.0)}, {"noise": -1.0}, {"hard": 2.0}]
)
def test_refuses_options_that_mean_nothing(options: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match="is|lies|falls|are"):
        LearnedMasks(**options)
