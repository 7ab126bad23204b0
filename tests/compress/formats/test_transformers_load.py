"""transformers' own loader is tried on planned checkpoints, and the form follows what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compress_kernels.layouts import TensorSpec
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import compress
from benchmarks.zoo.models import write_model
from benchmarks.zoo.plain import TOKENS, logits
from compress.checkpoint.source import open_source
from compress.errors import UserError
from compress.formats import loading_error, passed_over
from compress.models.skeleton import open_skeleton
from compress.planning.plan import Plan

_PLAIN = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
tokens = load_file(sys.argv[2])["tokens"]
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
with torch.no_grad():
    save_file({"logits": model(tokens, use_cache=False).logits.contiguous()}, sys.argv[3])
assert not any(name.partition(".")[0] == "compress" for name in sys.modules)
"""


def specs(plan: Plan) -> dict[str, TensorSpec]:
    return {slot.name: slot.spec for shard in plan.shards for slot in shard.slots}


def error_of(kind: str, folder: Path, **changes: object) -> str | None:
    write_model(kind, folder)
    plan = compress.plan(folder, "w4-rtn", settings={"quantize.group_size": 32}, format="auto")
    skeleton = open_skeleton(open_source(folder))
    shapes = {weight.name: weight.view.shape for weight in plan.weights}
    config = {**(plan.quantization_config or {}), **changes}
    return loading_error(skeleton.model, config, specs(plan), shapes, skeleton.source.headers)


def test_a_model_that_opens(tmp_path: Path) -> None:
    assert error_of("llama", tmp_path) is None
    assert error_of("mixtral", tmp_path / "experts") is None


def test_code_that_reads_the_weight_of_a_packed_layer(tmp_path: Path) -> None:
    said = error_of("gpt_bigcode", tmp_path, dequantize=False)
    assert said is not None
    assert "'weight'" in said
    assert error_of("gpt_bigcode", tmp_path / "decoded", dequantize=True) is None


def test_a_parameter_that_would_stay_random(tmp_path: Path) -> None:
    write_model("llama", tmp_path)
    plan = compress.plan(tmp_path, "w4-rtn")
    skeleton = open_skeleton(open_source(tmp_path))
    kept = {name: spec for name, spec in specs(plan).items() if name != "model.norm.weight"}
    shapes = {weight.name: weight.view.shape for weight in plan.weights}
    said = loading_error(
        skeleton.model, plan.quantization_config or {}, kept, shapes, skeleton.source.headers
    )
    assert said == "model.norm.weight would be left at random values"


def test_nothing_real_is_made(tmp_path: Path) -> None:
    write_model("llama", tmp_path)
    skeleton = open_skeleton(open_source(tmp_path))
    error_of("llama", tmp_path / "other")
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())


def test_decoding_is_written_and_plain_transformers_opens_it(tmp_path: Path) -> None:
    write_model("falcon", tmp_path / "source")
    result = compress.compress(tmp_path / "source", "w4-rtn", tmp_path / "out", device="cpu")
    assert result.plan.format == "compressed-tensors"
    assert "transformers decodes it while loading" in result.plan.format_reason
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["dequantize"] is True
    assert {group["weights"]["group_size"] for group in config["config_groups"].values()} == {64}
    assert (
        len(config["config_groups"]) == 1
    )  # weights of 64 and 128 inputs: transformers decodes by one scheme
    save_file({"tokens": TOKENS}, tmp_path / "tokens.safetensors")
    files = [str(tmp_path / name) for name in ("out", "tokens.safetensors", "logits.safetensors")]
    subprocess.run([sys.executable, "-c", _PLAIN, *files], check=True, timeout=600)
    ours = logits(compress.load(tmp_path / "out", dtype=torch.float32, device="cpu"))
    theirs = load_file(files[2])["logits"]
    # Decoded to bf16, the dtype of the scales.
    assert float((ours - theirs).abs().max() / ours.abs().max()) < 1e-2


def test_the_plan_is_made_again_from_what_was_settled(tmp_path: Path) -> None:
    write_model("falcon", tmp_path / "source")
    compress.compress(tmp_path / "source", "w4-rtn", tmp_path / "out", device="cpu")
    recorded = json.loads((tmp_path / "out" / "compress.json").read_text())["plan"]["form_options"]
    assert recorded == {"common_sizes": True, "dequantize": True}
    compress.verify(tmp_path / "out", tmp_path / "source")


def test_a_form_that_is_asked_for_and_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    write_model("bailing_hybrid", tmp_path)
    assert compress.plan(tmp_path, "w4-rtn").format == "native"
    with pytest.raises(UserError, match="transformers cannot open it"):
        compress.plan(tmp_path, "w4-rtn", format="compressed-tensors")


def test_modules_that_bitsandbytes_passes_over(tmp_path: Path) -> None:
    write_model("llama", tmp_path)
    plan = compress.plan(tmp_path, "nf4")
    assert plan.format == "bitsandbytes"
    model = AutoModelForCausalLM.from_config(open_skeleton(open_source(tmp_path)).model.config)
    config = plan.quantization_config or {}
    modules = [weight.view.module for weight in plan.weights]
    assert passed_over(model, config, modules) is None
    said = passed_over(model, {**config, "llm_int8_skip_modules": [modules[0]]}, modules)
    assert said == f"it keeps {modules[0]} a dense Linear"
