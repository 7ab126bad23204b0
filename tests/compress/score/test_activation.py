"""The scores of the layer's own output: what an error costs is what it does to the output on the inputs seen."""

from __future__ import annotations

import pytest
import torch

from compress.score.activation import Activation, ActivationDiagonal
from compress.score.input_scale import InputScale
from compress.score.magnitude import Magnitude
from compress.score.metric import Kron
from compress.score.statistics import Statistics


def inputs() -> torch.Tensor:
    return torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, 6)


def seen(tokens: int = 50) -> Statistics:
    x = inputs()
    return Statistics(
        tokens, gram=x.T @ x / 50, diagonal=x.square().mean(0), mean_abs=x.abs().mean(0)
    )  # fmt: skip


def test_the_gram_matrix_is_the_mean_squared_change_of_the_output() -> None:
    delta = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    expected = float((inputs() @ delta.T).square().sum(1).mean())
    assert Activation().metric(seen()).loss(delta) == pytest.approx(expected, rel=1e-5)


def test_its_diagonal_takes_inputs_as_uncorrelated() -> None:
    delta = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    expected = float((inputs().square().mean(0) * delta.square()).sum())
    assert ActivationDiagonal().metric(seen()).loss(delta) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_columns_scaled_by_the_size_of_their_inputs(alpha: float) -> None:
    delta = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    scaled = delta * inputs().abs().mean(0) ** alpha
    assert InputScale(alpha).metric(seen()).loss(delta) == pytest.approx(
        float(scaled.square().sum()), rel=1e-5
    )


def test_magnitude_looks_at_no_data() -> None:
    assert Magnitude().metric(Statistics()) == Kron()
    assert not Magnitude().needs


@pytest.mark.parametrize(
    "score", [Activation(), ActivationDiagonal(), InputScale()], ids=lambda s: type(s).__name__
)
def test_inputs_that_no_token_reached_say_nothing(
    score: Activation | ActivationDiagonal | InputScale,
) -> None:
    assert score.metric(seen(tokens=0)) == Kron()
    with pytest.raises(ValueError, match="needs"):
        score.metric(Statistics(tokens=5))
