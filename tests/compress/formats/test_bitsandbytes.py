"""NF4 as bitsandbytes writes it, to the byte; read by transformers with it, and by us without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import bitsandbytes.functional as bnb
import pytest
import torch
from compress_kernels.layouts import NormalFloat4, check, layout_from_json
from compress_kernels.modules import PackedLinear
from transformers import AutoModelForCausalLM

from benchmarks.zoo.models import write_model
from compress import compress, load, plan, verify
from compress.errors import UserError
from compress.recipe.recipe import Recipe
from compress.score.metric import Kron
from compress.structures.grids.nf4 import NF4Grid


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_nearest_is_what_bitsandbytes_makes(dtype: torch.dtype) -> None:
    weight = (0.05 * torch.randn(12, 256, generator=torch.Generator().manual_seed(0))).to(dtype)
    weight[3, :64] = 0
    grid = NF4Grid(dtype=dtype)
    parameters = grid.fit(weight.float(), Kron())
    packed = grid.encode(grid.project(weight.float(), parameters), parameters)
    check(packed.layout, packed.tensors, (12, 256))
    codes, state = bnb.quantize_4bit(weight, quant_type="nf4")
    theirs = state.as_dict(packed=True)
    assert torch.equal(packed.tensors["weight_packed"], codes)
    assert torch.equal(packed.tensors["weight_quant_map"], theirs["quant_map"])
    assert torch.equal(packed.tensors["weight_state"], theirs["quant_state.bitsandbytes__nf4"])
    live = theirs["absmax"] > 0
    assert torch.equal(packed.tensors["weight_absmax"][live], theirs["absmax"][live])
    assert torch.equal(packed.dense(dtype), bnb.dequantize_4bit(codes, state))
    assert layout_from_json(packed.layout.to_json()) == packed.layout


def test_bad_tensors_are_refused() -> None:
    layout = NormalFloat4()
    tensors = layout.encode(torch.zeros(4, 128, dtype=torch.int64), torch.ones(4, 2))
    PackedLinear(layout, (4, 128), tensors).prepare()
    wrong = {**tensors, "weight_state": tensors["weight_state"].clone()}
    wrong["weight_state"][0] = 65
    with pytest.raises(ValueError, match="weight_state says"):
        PackedLinear(layout, (4, 128), wrong).prepare()
    with pytest.raises(ValueError, match="do not divide"):
        layout.specs((4, 96))


@pytest.mark.parametrize(
    ("family", "format"), [("llama", "bitsandbytes"), ("gpt2", "bitsandbytes"), ("gpt_oss", "native")]
)
def test_a_checkpoint_loads_everywhere(
    tiny_model: Callable[..., Path], tmp_path: Path, family: str, format: str
) -> None:
    source, out = tiny_model(family), tmp_path / "out"
    result = compress(source, "nf4", out)
    assert result.plan.format == format
    verify(out, source)
    compress(source, "nf4", tmp_path / "dense", format="dense")
    tokens = torch.arange(24).unsqueeze(0)
    dense = load(tmp_path / "dense")
    models = [load(out), AutoModelForCausalLM.from_pretrained(out)]
    with torch.no_grad():
        wanted = dense(tokens).logits.float()
        for model in models:
            assert float((model(tokens).logits.float() - wanted).norm() / wanted.norm()) < 2e-2
    packed = [module for module in models[0].modules() if isinstance(module, PackedLinear)]
    assert packed
    assert all(module.layout == NormalFloat4() for module in packed)


def test_what_does_not_go_with_nf4_is_refused() -> None:
    step = {"quantize": {"type": "nf4"}, "solver": "nearest"}
    assert Recipe.parse({"name": "x", "steps": [step]}).steps[0].quantize is not None
    for wrong in ({"bits": 3}, {"group_size": 100}, {"symmetric": False}):
        with pytest.raises(UserError, match="nf4"):
            Recipe.parse({"name": "x", "steps": [{"quantize": {"type": "nf4", **wrong}}]})


def test_linear_modules_left_as_they_are_are_skipped_by_name(tiny_model: Callable[..., Path]) -> None:
    step = {"quantize": {"type": "nf4"}, "solver": "nearest", "ignore": ["re:.*down_proj"]}
    found = plan(tiny_model("llama"), Recipe.parse({"name": "x", "steps": [step]})).quantization_config
    assert found is not None
    names = [f"model.layers.{index}.mlp.down_proj" for index in (0, 1)]
    assert found["llm_int8_skip_modules"] == [*names, "lm_head"]
    assert (found["quant_method"], found["bnb_4bit_quant_type"]) == ("bitsandbytes", "nf4")


def test_what_bitsandbytes_layers_do_not_take_is_written_in_our_form(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    # Keys and values of one head of 16: transformers opens them, and the first forward on a CPU would fail.
    found = plan(tiny_model("llama", num_key_value_heads=1), "nf4")
    assert found.format == "native"
    assert "k_proj has 16 outputs, where bitsandbytes' layers take multiples of 32" in found.format_reason


@pytest.mark.parametrize(("kind", "why"), [("mamba", "reads backbone"), ("rwkv", "changes rwkv")])
def test_code_that_uses_weights_itself_gets_our_form(tmp_path: Path, kind: str, why: str) -> None:
    write_model(kind, tmp_path / kind)
    found = plan(tmp_path / kind, "nf4")
    assert found.format == "native"
    assert why in found.format_reason
