"""The Fisher metric: what it takes from gradients, and what where there are none."""

from __future__ import annotations

import pytest
import torch

from compress.score.fisher import Fisher
from compress.score.statistics import Statistics


def seen() -> Statistics:
    left, right = torch.tensor([[2.0, 1.0], [1.0, 4.0]]), torch.eye(3)
    return Statistics(tokens=5, gram=3 * torch.eye(3), output_gradient_gram=left, dense_gram=right)


def test_damping_is_relative_and_leaves_the_statistics_alone() -> None:
    statistics = seen()
    assert statistics.output_gradient_gram is not None
    before = statistics.output_gradient_gram.clone()
    metric = Fisher(damping=0.5).metric(statistics)
    assert metric.left.matrix is not None
    assert torch.equal(metric.left.matrix, before + 0.5 * 3.0 * torch.eye(2))
    assert torch.equal(statistics.output_gradient_gram, before)
    assert torch.equal(metric.right.full(3, "cpu"), 3 * torch.eye(3))
    assert torch.equal(
        Fisher(inputs="dense", damping=0).metric(statistics).right.full(3, "cpu"), torch.eye(3)
    )


def test_without_gradients_the_inputs_alone_count() -> None:
    statistics = Statistics(
        tokens=5, gram=torch.eye(3), output_gradient_gram=torch.zeros(2, 2), dense_gram=torch.eye(3)
    )
    score = Fisher(damping=0.1)
    assert score.metric(statistics).rows_apart
    assert "no gradient" in str(score.fallback(statistics))
    assert score.fallback(seen()) is None


def test_a_negative_damping_is_refused() -> None:
    with pytest.raises(ValueError, match="damping"):
        Fisher(damping=-1.0)


def test_tokens_that_count_by_gradient_need_moments_of_their_own() -> None:
    assert Fisher().needs == {"output_gradients", "gram"}
    assert Fisher(tokens="by_gradient").needs == {"token_gradients", "gram"}
    assert Fisher(factors="triple").needs == {"fisher", "gram"}
    for options in ({"tokens": "some"}, {"tokens": "by_gradient", "factors": "triple"}):
        with pytest.raises(ValueError, match="tokens"):
            Fisher(**options)
