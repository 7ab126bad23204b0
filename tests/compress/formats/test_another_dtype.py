"""Small floats in models of fp16 and fp32, in plain transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from compress import compress, load

TOKENS = torch.arange(2, 34).view(2, 16)
MX_INPUTS = {"type": "float", "strategy": "group", "group_size": 32, "scale_type": "e8m0"}


def written(folder: Path, dtype: torch.dtype, step: dict[str, Any]) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=256, **sizes)).to(dtype).save_pretrained(folder / "model")
    whole = {"targets": ["linear"], "ignore": ["lm_head"], "solver": "nearest", **step}
    compress(
        folder / "model", {"name": "x", "format": "compressed-tensors", "steps": [whole]}, folder / "out"
    )
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
