"""The true-input target against least squares over the tokens in float64."""

from __future__ import annotations

import torch

from compress.linalg.factor_cache import FactorCache
from compress.linalg.true_input import true_input_target
from compress.score.metric import Side


def test_answers_the_dense_outputs_by_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 24, generator=generator)
    dense = torch.randn(400, 24, generator=generator)
    inputs = dense + 0.3 * torch.randn(400, 24, generator=generator)
    gram, cross = inputs.T @ inputs / 400, dense.T @ inputs / 400
    damped = gram.double() + 0.01 * gram.diagonal().double().mean() * torch.eye(24, dtype=torch.float64)
    expected = weight.double() + weight.double() @ (cross - gram).double() @ torch.linalg.inv(damped)
    found = true_input_target(weight, cross, Side(gram), FactorCache())
    assert torch.allclose(found.double(), expected, atol=1e-4)

    def error(theta: torch.Tensor) -> float:
        return float((dense @ weight.T - inputs @ theta.T).square().sum())

    best = error(torch.linalg.lstsq(inputs, dense @ weight.T).solution.T)
    assert best <= error(found) < best + 0.02 * (error(weight) - best)


def test_unchanged_inputs_leave_the_weight() -> None:
    weight, gram = torch.randn(3, 8, generator=torch.Generator().manual_seed(1)), torch.eye(8)
    assert torch.equal(true_input_target(weight, gram, Side(gram), FactorCache()), weight)
