"""Moments of gradients against float64 sums over stored gradients, for made-up gradients of one block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.calibrate.kfac import PASSES, block_output_moments, gradient_statistics

BATCHES, TOKENS, OUT, IN = 5, 6, 4, 7


@dataclass
class MadeUp:
    """A block's gradients: of ``linear`` by its outputs and of ``expert`` as a whole; counts how often they are asked for."""

    passes: int = 0
    count: int = BATCHES

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(BATCHES, TOKENS, IN, generator=generator)
        self.outputs = torch.randn(BATCHES, TOKENS, OUT, generator=generator)
        self.weights = {
            "linear": torch.einsum("bto,bti->boi", self.outputs, self.inputs),
            "expert": torch.randn(BATCHES, OUT, IN, generator=generator),
        }

    def by_weight(self, views: Sequence[Any]) -> Iterator[dict[str, Tensor]]:
        self.passes += 1
        for batch in range(BATCHES):
            yield {view.name: self.weights[view.name][batch].clone() for view in views}

    def has_output_gradients(self, view: Any) -> bool:
        return bool(view.name == "linear")

    def by_output(self, views: Sequence[Any]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        for batch in range(BATCHES):
            yield {view.name: (self.inputs[batch], self.outputs[batch]) for view in views}


VIEWS: Any = [SimpleNamespace(name="linear"), SimpleNamespace(name="expert")]


def of(block: MadeUp, *needs: str) -> dict[str, Any]:
    return gradient_statistics(block, VIEWS, {view.name: frozenset(needs) for view in VIEWS})  # type: ignore[arg-type]


def test_squares() -> None:
    block = MadeUp()
    statistics = of(block, "squared_gradient", "gradient_rows")
    assert block.passes == 1
    for name, weights in block.weights.items():
        squares = weights.double().square()
        torch.testing.assert_close(
            statistics[name].squared_gradient.double(), squares.mean(0), rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(
            statistics[name].gradient_rows.double(), squares.sum(2).mean(0), rtol=1e-5, atol=1e-6
        )
        assert statistics[name].fisher_left is None


def test_the_kronecker_factors_are_steps_of_power_iteration() -> None:
    block = MadeUp()
    statistics = of(block, "fisher")
    assert block.passes == PASSES + 1
    for name, weights in block.weights.items():
        gradients = weights.double()
        left = torch.einsum("boi,bpi->op", gradients, gradients) / BATCHES
        right = torch.einsum("boi,boj->ij", gradients, gradients) / BATCHES
        right /= right.norm()
        for _ in range(PASSES - 1):
            before = left / left.norm()
            left = torch.einsum("boi,ij,bpj->op", gradients, right, gradients) / BATCHES
            right = torch.einsum("boi,op,bpj->ij", gradients, before, gradients) / BATCHES
            right /= right.norm()
        left = torch.einsum("boi,ij,bpj->op", gradients, right, gradients) / BATCHES
        torch.testing.assert_close(statistics[name].fisher_left.double(), left, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(statistics[name].fisher_right.double(), right, rtol=1e-4, atol=1e-5)


def test_output_gradients_of_a_linear_module() -> None:
    block = MadeUp()
    linear = of(block, "output_gradients")["linear"]
    inputs, outputs = block.inputs.double().flatten(0, 1), block.outputs.double().flatten(0, 1)
    torch.testing.assert_close(
        linear.dense_gram.double(), inputs.T @ inputs / len(inputs), rtol=1e-5, atol=1e-6
    )
    expected = outputs.T @ outputs * TOKENS / len(outputs)
    torch.testing.assert_close(linear.output_gradient_gram.double(), expected, rtol=1e-5, atol=1e-6)


def test_output_gradients_of_an_expert_come_from_whole_gradients() -> None:
    block = MadeUp()
    expert = of(block, "output_gradients")["expert"]
    gradients = block.weights["expert"].double()
    left = torch.einsum("boi,bpi->op", gradients, gradients) / BATCHES
    right = torch.einsum("boi,boj->ij", gradients, gradients) / BATCHES
    torch.testing.assert_close(expert.output_gradient_gram.double(), left, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(expert.dense_gram.double(), right / right.trace(), rtol=1e-5, atol=1e-6)


def test_a_weight_that_no_gradient_reaches() -> None:
    block = MadeUp()
    block.weights["expert"].zero_()
    statistics = of(block, "fisher", "output_gradients")["expert"]
    for name in ("fisher_left", "fisher_right", "output_gradient_gram", "dense_gram"):
        assert torch.equal(getattr(statistics, name), torch.zeros_like(getattr(statistics, name)))


@pytest.mark.parametrize("needs", [(), ("gram",)])
def test_nothing_is_computed_that_nobody_asks_for(needs: tuple[str, ...]) -> None:
    block = MadeUp()
    assert of(block, *needs) == {}
    assert block.passes == 0


def test_tokens_that_count_by_their_gradients() -> None:
    block = MadeUp()
    block.outputs[0, 0] *= 50  # a sink: most of all squared gradients
    block.outputs[1, 2] = 0
    linear = of(block, "token_gradients")["linear"]
    inputs, outputs = block.inputs.double().flatten(0, 1), block.outputs.double().flatten(0, 1) * TOKENS**0.5
    sizes = outputs.square().sum(1)
    directions = outputs / sizes.sqrt().clamp_min(1e-30).unsqueeze(1)
    expected = {
        "output_gradient_gram": directions.T @ directions * sizes.mean() / len(sizes),
        "dense_gram": (inputs * sizes.unsqueeze(1)).T @ inputs / sizes.mean() / len(sizes),
        "token_weights": sizes / sizes.mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(getattr(linear, name).double(), value, rtol=1e-4, atol=1e-5, msg=name)
    # One token of thirty has little to say of the others' directions.
    alike = of(block, "output_gradients")["linear"].output_gradient_gram
    shares = [
        float((m @ outputs[0].float()).norm() / outputs[0].norm() / m.trace())
        for m in (linear.output_gradient_gram, alike)
    ]
    assert shares[0] < 0.5 < shares[1]


def test_the_factors_of_weighted_tokens_have_the_scale_of_the_fisher_matrix() -> None:
    block = MadeUp()
    linear = of(block, "token_gradients")["linear"]
    inputs, outputs = block.inputs.double().flatten(0, 1), block.outputs.double().flatten(0, 1) * TOKENS**0.5
    whole = (outputs.square().sum(1) * inputs.square().sum(1)).mean()
    found = float(linear.output_gradient_gram.trace() * linear.dense_gram.trace())
    assert found == pytest.approx(float(whole), rel=1e-4)


def test_gradients_of_a_blocks_output() -> None:
    gradients = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))
    metric, weights = block_output_moments(gradients)
    rows = gradients.double().flatten(0, 1)
    sizes = rows.square().sum(1)
    expected = (rows / sizes.unsqueeze(1)).T @ rows * sizes.mean() / len(rows)
    torch.testing.assert_close(metric.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights.double(), sizes / sizes.mean(), rtol=1e-4, atol=1e-5)
