"""Static scales of a run: calibrated, written, continued, and simulated where the next block is calibrated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_kernels.modules import PackedLinear

from compress.api import compress, load
from compress.calibrate.corpus import load_corpus
from compress.checkpoint.source import open_source
from compress.checkpoint.writer import Writer
from compress.recipe.recipe import Recipe
from compress.text.tokenize import load_tokenizer
from compress.verification.checkpoint import verify

STATIC = {"dynamic": False, "symmetric": False, "observer": "percentile"}
RUN: dict[str, Any] = {"samples": 4, "length": 32, "dtype": "fp32", "device": "cpu"}


def recipe(activations: dict[str, Any], **quantize: Any) -> Recipe:
    step = {"quantize": {"bits": 8, "group_size": "channel", **quantize}, "activations": activations}
    return Recipe.parse({"name": "x", "steps": [{**step, "solver": "gptq"}]})


def test_scales_are_those_of_the_inputs(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny_model("llama")
    compress(model, recipe({"dynamic": False}), tmp_path / "out", **RUN)
    written = open_source(tmp_path / "out")
    scales = {name: written.read(f"model.layers.0.self_attn.{name}_proj.input_scale") for name in "qkvo"}
    assert torch.equal(scales["q"], scales["k"])
    assert torch.equal(scales["q"], scales["v"])
    assert not torch.equal(scales["q"], scales["o"])
    packed = load(tmp_path / "out", dtype=torch.float32, device="cpu")
    layer = packed.model.layers[0].self_attn.q_proj
    assert isinstance(layer, PackedLinear)
    seen: list[torch.Tensor] = []
    layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    tokens = load_corpus("embedded", load_tokenizer(model), samples=4, length=32, seed=0).tokens
    with torch.no_grad():
        packed(tokens)
    largest = max(float(x.abs().max()) for x in seen)
    assert float(scales["q"]) == pytest.approx(largest / 127, rel=0.01)


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2", "gpt_oss"])
def test_a_run_is_verified_and_experts_share_a_scale(
    family: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    result = compress(tiny_model(family), recipe(STATIC), tmp_path / "out", **RUN)
    source = open_source(tiny_model(family))
    verify(tmp_path / "out", source)
    by_parameter: dict[str, set[float]] = {}
    written = open_source(tmp_path / "out")
    for weight in result.plan.weights:
        scale = float(written.read(f"{weight.name}.input_scale"))
        if weight.view.kind == "expert":
            by_parameter.setdefault(weight.view.parameter, set()).add(scale)
    assert all(len(scales) == 1 for scales in by_parameter.values())


def test_a_run_that_was_killed_goes_on_with_its_scales(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama", num_hidden_layers=3)
    compress(model, recipe(STATIC, bits=8), tmp_path / "whole", **RUN)
    finish = Writer.finish_block

    def killed(self: Writer, block: Any, *args: Any) -> None:
        finish(self, block, *args)
        if block == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "finish_block", killed)
        with pytest.raises(KeyboardInterrupt):
            compress(model, recipe(STATIC, bits=8), tmp_path / "out", **RUN)
    compress(model, recipe(STATIC, bits=8), tmp_path / "out", **RUN)
    for file in (tmp_path / "whole").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()


def test_blocks_are_calibrated_on_rounded_inputs(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """GPTQ corrects for the inputs that it sees: with coarser ones it takes other codes of the same grid."""
    codes = []
    for bits in (3, 8):
        out = tmp_path / str(bits)
        compress(tiny_model("llama"), recipe({"bits": bits}, bits=4, group_size=16), out, **RUN)
        codes.append(open_source(out).read("model.layers.1.mlp.down_proj.weight_packed"))
    assert not torch.equal(*codes)
