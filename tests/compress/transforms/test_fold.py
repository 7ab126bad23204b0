"""Folds are found in real blocks, change nothing, and reach the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compress.calibrate.capture import call_block
from compress.calibrate.stream import BlockStream
from compress.checkpoint.source import open_source
from compress.models.skeleton import open_skeleton
from compress.pipeline.steps import compress
from compress.recipe.recipe import Recipe
from compress.score.statistics import Statistics
from compress.structures.grids.integer import IntegerGrid
from compress.transforms.awq import AWQ, powers_of_two
from compress.transforms.base import Reader
from compress.transforms.fold import Edit, find_fold
from compress.verification.checkpoint import verify

TOKENS = torch.randint(0, 256, (4, 24), generator=torch.Generator().manual_seed(0))

FOUND = {
    "llama": {"q_proj", "gate_proj", "down_proj"},
    "qwen3": {"q_proj", "gate_proj", "down_proj"},
    "gpt2": {"c_attn", "c_fc"},
    "opt": {"q_proj", "fc1", "out_proj"},
    "gpt_neox": {"query_key_value"},
    "mixtral": {"q_proj"},
}
"""Family → for each fold, a weight whose input it scales. gpt_neox's parallel halves have a norm each."""


@pytest.mark.parametrize("family", FOUND)
def test_folds_change_nothing(tiny_model: Callable[..., Path], family: str) -> None:
    skeleton = open_skeleton(open_source(tiny_model(family)))
    found = set()
    with BlockStream(skeleton, TOKENS, dtype=torch.float32) as stream:
        stream.prepare()
        skeleton.load_block(0, device="cpu", dtype=torch.float32)
        block, prefix = skeleton.block_module(0), skeleton.blocks[0]
        parameters = {f"{prefix}.{name}": value for name, value in block.named_parameters()}
        editable = frozenset(name for name, value in parameters.items() if value.ndim == 1)
        hidden, kwargs = next(iter(stream.inputs(0)))

        def run() -> torch.Tensor:
            with torch.no_grad():
                return call_block(block, hidden.clone(), kwargs)

        before = run()
        views = [view for view in skeleton.block_views(0) if view.kind != "expert"]
        for stage in skeleton.stages(0):
            group = [view for view in stage if view.kind != "expert"]
            fold = find_fold(group, views, parameters, editable, run) if group else None
            assert torch.equal(run(), before), "the search puts everything back"
            if fold is not None:
                found |= {view.name.rpartition(".")[2] for view in group}
                scale = torch.exp2(torch.randint(-2, 3, (group[0].shape[1],)).float())
                fold.apply(scale, parameters)
                assert torch.allclose(run(), before, atol=1e-5)
                before = run()
    assert FOUND[family] <= found


def test_edits_of_vectors() -> None:
    vector, scale = torch.randn(8).bfloat16(), torch.exp2(torch.arange(8.0) - 4)
    assert torch.equal(Edit(scale).apply(vector) * scale, vector.float())
    plus_one = Edit(scale, 1.0).apply(vector.float())
    assert torch.allclose((1 + plus_one) * scale, 1 + vector.float())


def test_powers_of_two() -> None:
    scale = powers_of_two(torch.tensor([0.3, 1.0, 5.0, 1e9]))
    assert torch.equal(scale.log2(), scale.log2().round())
    assert float(scale.log2().abs().max()) <= 8


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


def test_loud_inputs_get_large_scales() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(512, 64, generator=generator)
    inputs[:, :2] *= 50
    weight = torch.randn(32, 64, generator=generator)
    seen = Statistics(tokens=512, gram=inputs.T @ inputs / 512, mean_abs=inputs.abs().mean(0))
    scale = AWQ().scales(Reader((), (weight,), (IntegerGrid(3, 64, True),), seen))
    assert scale is not None
    assert float(scale[:2].min()) > float(scale[2:].max())
