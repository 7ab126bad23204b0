"""SmoothQuant: its formula, the strength of least output error, and logits that are the same before anything is rounded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compress_kernels.activations import ActivationScheme, fake_quantize
from torch import Tensor

from compress.calibrate.stream import BlockStream
from compress.checkpoint.source import open_source
from compress.models.skeleton import open_skeleton
from compress.pipeline.steps import compress
from compress.recipe.recipe import Recipe
from compress.score.statistics import Statistics
from compress.structures.grids.integer import IntegerGrid
from compress.transforms.apply import transform_block
from compress.transforms.base import Reader
from compress.transforms.smoothquant import SmoothQuant
from compress.verification.checkpoint import verify

GRID = IntegerGrid(8, "channel", scale_dtype=torch.float32)
TOKENS = torch.randint(0, 256, (4, 24), generator=torch.Generator().manual_seed(0))
INT8 = ActivationScheme()


def outlier_inputs() -> Tensor:
    inputs = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    inputs[:, :2] *= 60
    return inputs


def reader_of(inputs: Tensor, activations: ActivationScheme | None = INT8) -> Reader:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    statistics = Statistics(tokens=len(inputs), max_abs=inputs.abs().amax(0), sample=inputs)
    return Reader((), (weight,), (GRID,), statistics, activations)


def output_error(reader: Reader, scale: Tensor) -> float:
    """Of the layer's outputs, both sides rounded, in float64."""
    (weight,), inputs = reader.weights, reader.statistics.sample
    assert inputs is not None
    rounded = GRID.project(weight * scale, GRID.fit(weight * scale, None))
    found = fake_quantize(inputs / scale, INT8).double() @ rounded.double().T
    return float((found - inputs.double() @ weight.double().T).square().sum())


def test_a_given_strength_is_the_papers_formula() -> None:
    reader = reader_of(outlier_inputs())
    found = SmoothQuant(alpha=0.5).scales(reader)
    assert found is not None
    assert reader.statistics.max_abs is not None
    exact = (reader.statistics.max_abs / reader.weights[0].abs().amax(0)).sqrt()
    ratio = (found / exact).log2()
    assert (
        float(ratio.max() - ratio.min()) <= 1 + 1e-5
    )  # to the nearest power of two, up to one factor for all


def test_the_strength_of_least_error_is_taken() -> None:
    reader = reader_of(outlier_inputs())
    found = SmoothQuant(points=10).scales(reader)
    assert found is not None
    trials = [SmoothQuant(alpha=point / 10).scales(reader) for point in range(11)]
    errors = [output_error(reader, scale) for scale in trials if scale is not None]
    assert output_error(reader, found) == pytest.approx(min(errors), rel=1e-3)
    assert min(errors) < 0.2 * output_error(reader, torch.ones(64))


def test_nothing_is_scaled_without_rounded_inputs_or_tokens() -> None:
    assert SmoothQuant().scales(reader_of(outlier_inputs(), activations=None)) is None
    assert SmoothQuant().scales(Reader((), (), (), Statistics(), INT8)) is None


def test_options_out_of_range() -> None:
    with pytest.raises(ValueError, match="alpha"):
        SmoothQuant(alpha=1.5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "mixtral"])
def test_logits_are_the_same_before_rounding(family: str, tiny_model: Callable[..., Path]) -> None:
    skeleton = open_skeleton(open_source(tiny_model(family)))
    blocks = range(len(skeleton.blocks))

    @torch.no_grad()
    def logits() -> Tensor:
        with skeleton.loaded_rest(device="cpu", dtype=torch.float32, head=True):
            return skeleton.model(input_ids=TOKENS, use_cache=False).logits

    with BlockStream(skeleton, TOKENS, dtype=torch.float32) as stream:
        stream.prepare()
        for index in blocks:
            skeleton.load_block(index, device="cpu", dtype=torch.float32)
        before, states = logits(), set()
        for index in blocks:
            vectors = frozenset(name for name, value in skeleton.model.named_parameters() if value.ndim == 1)
            views = [view for view in skeleton.block_views(index) if not view.router]
            structures = {view.name: GRID for view in views}
            rounded = {view.name: INT8 for view in views}
            done = transform_block(
                skeleton, stream, index, structures, (SmoothQuant(alpha=0.5),), vectors, rounded
            )
            states |= set(done.states.values())
            stream.advance(index)
        after = logits()
    assert "scaled" in states
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_a_run_is_verified(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    step = {
        "quantize": {"bits": 8, "group_size": "channel"},
        "activations": {"dynamic": False},
        "solver": "gptq",
    }
    recipe = Recipe.parse({"name": "x", "transforms": "smoothquant", "steps": [step]})
    result = compress(tiny_model("llama"), recipe, tmp_path / "out", samples=4, length=32, device="cpu")
    verify(tmp_path / "out", open_source(tiny_model("llama")))
    assert any(record.info.get("transform") == "scaled" for record in result.report.weights)
