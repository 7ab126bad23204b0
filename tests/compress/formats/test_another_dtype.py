"""Small floats in models of fp16 and fp32, in plain transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from compress import compress, load, verify
from compress.assets import embedded_model
from compress.formats.another_dtype import in_bf16
from compress.report.schema import Report

TOKENS = torch.arange(2, 34).view(2, 16)
MX_INPUTS = {"type": "float", "strategy": "group", "group_size": 32, "scale_type": "e8m0"}
NV_INPUTS = {"type": "float", "bits": 4, "strategy": "tensor_group", "group_size": 16}


def written(folder: Path, dtype: torch.dtype, step: dict[str, Any]) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=4096, **sizes)).to(dtype).save_pretrained(folder / "model")
    whole = {"targets": ["linear"], "ignore": ["lm_head"], "solver": "nearest", **step}
    recipe = {"name": "x", "format": "compressed-tensors", "steps": [whole]}
    AutoTokenizer.from_pretrained(embedded_model()).save_pretrained(
        folder / "model"
    )  # ranges of inputs are measured on text
    compress(folder / "model", recipe, folder / "out", samples=1, length=16)
    return folder / "out"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["mxfp8", "mxfp4", "nvfp4"])
def test_plain_transformers_computes_them_in_the_model_s_dtype(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    out = written(tmp_path, dtype, {"quantize": {"type": kind}})
    plain = AutoModelForCausalLM.from_pretrained(out)
    assert plain.dtype == dtype
    with torch.no_grad():
        theirs, ours = plain(TOKENS).logits, load(out, dtype=dtype, device="cpu")(TOKENS).logits
    torch.testing.assert_close(theirs, ours, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    ("dtype", "step"),
    [
        (torch.bfloat16, {"quantize": {"type": "mxfp8"}}),
        (torch.float16, {"quantize": {"type": "fp8", "group_size": "channel"}}),
        (torch.float16, {"quantize": {"type": "mxfp8"}, "activations": MX_INPUTS}),
    ],
    ids=["bf16", "fp8", "rounded inputs"],
)
def test_others_stay_packed_until_the_first_forward(
    dtype: torch.dtype, step: dict[str, Any], tmp_path: Path
) -> None:
    out = written(tmp_path, dtype, step)
    assert '"dequantize"' not in (out / "config.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(
    "step",
    [
        {"quantize": {"type": "mxfp8"}, "activations": MX_INPUTS},
        {"quantize": {"type": "mxfp4"}, "activations": MX_INPUTS | {"bits": 4}},
        {"quantize": {"type": "nvfp4"}, "activations": NV_INPUTS},
    ],
    ids=["mxfp8", "mxfp4", "nvfp4"],
)
def test_with_rounded_inputs_plain_transformers_opens_them_in_bf16(
    dtype: torch.dtype, step: dict[str, Any], tmp_path: Path
) -> None:
    out = written(tmp_path, dtype, step)
    plain = AutoModelForCausalLM.from_pretrained(out)
    assert plain.dtype == torch.bfloat16
    with torch.no_grad():
        theirs, ours = plain(TOKENS).logits, load(out, device="cpu")(TOKENS).logits
    torch.testing.assert_close(theirs, ours, atol=5e-2, rtol=5e-2)
    (note,) = [note for note in Report.read(out / "compress.json").notes if "bfloat16" in note]
    assert str(dtype).removeprefix("torch.") in note
    verify(out, tmp_path / "model")


def test_a_vision_model_s_text_takes_the_dtype_too() -> None:
    config = {"torch_dtype": "float16", "text_config": {"dtype": "float16", "hidden_size": 8}}
    quantization = {"config_groups": {"group_0": {"format": "mxfp4-pack-quantized"}}}
    assert in_bf16(config, quantization) == {
        "torch_dtype": "bfloat16",
        "text_config": {"dtype": "bfloat16", "hidden_size": 8},
    }
    assert in_bf16({}, quantization) == {"dtype": "bfloat16"}
    assert in_bf16(config, quantization | {"dequantize": True}) == {}
    assert in_bf16(config, {"config_groups": {"group_0": {"format": "float-quantized"}}}) == {}
