"""AWQ: the scale of least error among all that it tries, in float64, and its way into the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress.pipeline.steps import compress
from compress.recipe.recipe import Recipe
from compress.score.metric import Kron, Side
from compress.score.statistics import Statistics
from compress.structures.grids.integer import IntegerGrid
from compress.transforms.awq import AWQ
from compress.transforms.base import Reader
from compress.transforms.scaling import powers_of_two
from compress.verification.checkpoint import verify

GRID = IntegerGrid(3, 64, True, scale_dtype=torch.float32)


def loud_inputs() -> Tensor:
    inputs = torch.randn(512, 64, generator=torch.Generator().manual_seed(0))
    inputs[:, :2] *= 50
    return inputs


def weights() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(32, 64, generator=generator), torch.randn(16, 64, generator=generator)


def reader_of(inputs: Tensor) -> Reader:
    statistics = Statistics(
        tokens=len(inputs), gram=inputs.T @ inputs / len(inputs), mean_abs=inputs.abs().mean(0)
    )
    return Reader((), weights(), (GRID, GRID), statistics)


def output_error(inputs: Tensor, scale: Tensor) -> float:
    """The error of both layers' outputs when their scaled weights are rounded, in float64."""
    metric = Kron(right=Side((inputs.square().mean(0)) / scale.square()))
    total = 0.0
    for weight in weights():
        rounded = GRID.project(weight * scale, GRID.fit(weight * scale, metric)) / scale
        total += float(((weight - rounded).double() @ inputs.double().T).square().sum() / len(inputs))
    return total


def test_takes_the_scale_of_least_error() -> None:
    inputs = loud_inputs()
    found = AWQ(points=10).scales(reader_of(inputs))
    assert found is not None
    activations = inputs.abs().mean(0).double()
    magnitudes = torch.stack([weight.abs().mean(0) for weight in weights()]).mean(0).double()
    trials = [torch.ones(64)]
    for alpha in torch.arange(10) / 10:
        logs = (activations**alpha / magnitudes ** (1 - alpha)).log2()
        trials.append(torch.exp2((logs - (logs.max() + logs.min()) / 2).round().clamp(-8, 8)).float())
    best = min(output_error(inputs, scale) for scale in trials)
    assert output_error(inputs, found) == pytest.approx(best, rel=1e-4)
    assert best < 0.7 * output_error(inputs, torch.ones(64))
    assert float(found[:2].min()) > float(found[2:].max())


def test_nothing_is_scaled_without_tokens_or_gain() -> None:
    assert AWQ().scales(Reader((), weights(), (GRID, GRID), Statistics())) is None
    exact = IntegerGrid(8, 1, True, scale_dtype=torch.float32)
    statistics = reader_of(torch.randn(64, 64)).statistics
    codes = torch.randint(-3, 4, (8, 64)).float()
    assert AWQ(points=3).scales(Reader((), (codes.sign() * 127.5,), (exact,), statistics)) is None


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    inputs = loud_inputs()
    inputs[:, 5] = 0
    found = AWQ(points=5).scales(reader_of(inputs))
    assert found is not None
    assert bool(torch.isfinite(found).all())
    assert bool((found > 0).all())


def test_powers_of_two() -> None:
    scale = powers_of_two(torch.tensor([0.3, 1.0, 5.0, 1e9]))
    assert torch.equal(scale.log2(), scale.log2().round())
    assert float(scale.log2().abs().max()) <= 8


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        AWQ(points=0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_awq_reaches_the_checkpoint(tiny_model: Callable[..., Path], tmp_path: Path, family: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Some text to calibrate on, with outliers. " * 40, encoding="utf-8")
    model = tiny_model(family)
    step = {
        "quantize": {"bits": 3, "group_size": 32, "scales": "mse"},
        "score": "activation-diagonal",
        "solver": "nearest",
    }
    calibrate = {"data": str(text), "samples": 4, "length": 24}
    recipe = Recipe.parse({"name": "t", "transforms": "awq", "calibrate": calibrate, "steps": [step]})
    result = compress(model, recipe, tmp_path / "out")
    states = [weight.info["transform"] for weight in result.report.weights]
    assert all(str(state).startswith(("scaled", "unscaled: ")) for state in states)
    assert set(result.plan.rewritten.values()).isdisjoint(result.plan.passed_through)
    verify(tmp_path / "out", model)
